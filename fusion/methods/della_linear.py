"""DELLA without election: MagPrune, then the weighted sum.

    W = W_pre + λ·Σ_k w_k·δ̂_k,   δ̂_k as in DELLA

Deep et al., DELLA-Merging, 2024 (arXiv:2406.11617); mergekit's `della_linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..transforms.chain import Chain
from ..transforms.magprune import magprune
from ..transforms.merge import total
from ..transforms.scale import scale
from .options import Pruned, Summed


@dataclass(frozen=True, kw_only=True)
class DellaLinear(Summed, Pruned):
    """Drop deltas at random, the small ones more often, and add up the rest."""

    name: ClassVar[str] = "della-linear"
    title: ClassVar[str] = "DELLA-linear"
    source: ClassVar[str] = "arXiv:2406.11617"

    @cached_property
    def chain(self) -> Chain:
        """Prune, add up, scale."""
        summed = total(self.weights, normalize=self.normalize)
        return magprune(self.density, self.epsilon, rescale=self.rescale) | summed | scale(self.scale)
