"""Magnitude trim: keep the largest deltas of each model, unscaled.

    W = W_pre + λ·Σ_k w_k·top(δ_k)

The ablation of DARE and TIES that their papers compare with; of equal magnitudes those with the lowest index are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..arithmetic.per_model import PerModel
from ..transforms.chain import Chain
from ..transforms.merge import total
from ..transforms.scale import scale
from ..transforms.trim import Rescale, trim
from .options import Scoped, Summed, Trimmed


@dataclass(frozen=True, kw_only=True)
class Magnitude(Scoped, Summed, Trimmed):
    """Keep the largest deltas as they are.

    Attributes:
        rescale: Leave the kept deltas as they are (none), or scale them to the L1 norm of all deltas (l1).
    """

    density: PerModel = 0.1
    rescale: Rescale = "none"

    name: ClassVar[str] = "magnitude"
    title: ClassVar[str] = "magnitude trim"
    source: ClassVar[str] = "arXiv:2306.01708, arXiv:2311.03099"

    @cached_property
    def chain(self) -> Chain:
        """Trim, add up, scale."""
        summed = total(self.weights, normalize=self.normalize)
        return trim(self.density, rescale=self.rescale) | summed | scale(self.scale)
