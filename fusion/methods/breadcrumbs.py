"""Model Breadcrumbs: drop the smallest deltas as noise and the very largest as outliers; add up the rest.

    W = W_pre + λ·Σ_k w_k·m_k·δ_k,   m_k = 1 between the ranks

Davari & Belilovsky, Model Breadcrumbs, ECCV 2024 (arXiv:2312.06795), over each tensor. The paper's β is
`1 − density − gamma` here, its γ the fraction below the outliers. As in mergekit `density` is what is kept, exactly
`floor(density·N)`, and fewer outliers are dropped where they would cut into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..arithmetic.per_model import PerModel
from ..transforms.chain import Chain
from ..transforms.merge import total
from ..transforms.scale import scale
from ..transforms.trim import band
from .options import Banded, Summed


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Summed, Banded):
    """Drop the smallest and the largest deltas, and add the rest."""

    density: PerModel = 0.15

    name: ClassVar[str] = "breadcrumbs"
    title: ClassVar[str] = "Model Breadcrumbs"
    source: ClassVar[str] = "arXiv:2312.06795"

    @cached_property
    def chain(self) -> Chain:
        """Keep a band, add up, scale."""
        summed = total(self.weights, normalize=self.normalize)
        return band(self.density, self.gamma, rescale=self.rescale) | summed | scale(self.scale)
