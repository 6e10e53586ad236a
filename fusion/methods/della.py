"""DELLA: drop deltas at random, small ones rather than large ones of the same row; then TIES' election and mean.

    q_i = (density − ε) + 2ε·(r_i − 1)/(n − 1)      r_i the rank of |δ_i| in its row of n, 1 for the smallest
    δ̂_i = M_i·δ_i/q_i,  M_i ~ Bernoulli(q_i)        MagPrune
    W   = W_pre + λ·Σ_{k agrees} w_k·δ̂_k / Σ_{k agrees} w_k

Deep et al., DELLA-Merging, 2024 (arXiv:2406.11617): its p is `1 − density`, its window 2ε. mergekit rescales to the L1
norm of before in place of `1/q` (`rescale: l1`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..transforms.chain import Chain
from ..transforms.magprune import magprune
from ..transforms.merge import elect
from ..transforms.scale import scale
from .options import Elected, Pruned


@dataclass(frozen=True, kw_only=True)
class Della(Elected, Pruned):
    """Drop deltas at random, the small ones more often, elect signs, and average the models that agree."""

    name: ClassVar[str] = "della"
    title: ClassVar[str] = "DELLA"
    source: ClassVar[str] = "arXiv:2406.11617"

    @cached_property
    def chain(self) -> Chain:
        """Prune, elect, scale."""
        elected = elect(self.weights, self.election, normalize=self.normalize)
        return magprune(self.density, self.epsilon, rescale=self.rescale) | elected | scale(self.scale)
