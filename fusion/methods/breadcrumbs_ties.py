"""Breadcrumbs-TIES: Model Breadcrumbs' trimming, then TIES' election and disjoint mean.

Davari & Belilovsky (arXiv:2312.06795) and Yadav et al. (arXiv:2306.01708), joined as published in mergekit, which sums
the agreeing models in place of averaging them: `normalize` off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..arithmetic.per_model import PerModel
from ..transforms.chain import Chain
from ..transforms.merge import elect
from ..transforms.scale import scale
from ..transforms.trim import band
from .options import Banded, Elected


@dataclass(frozen=True, kw_only=True)
class BreadcrumbsTies(Elected, Banded):
    """Drop the smallest and the largest deltas, elect signs, and average the models that agree."""

    density: PerModel = 0.15

    name: ClassVar[str] = "breadcrumbs-ties"
    title: ClassVar[str] = "Breadcrumbs-TIES"
    source: ClassVar[str] = "arXiv:2312.06795, arXiv:2306.01708"

    @cached_property
    def chain(self) -> Chain:
        """Keep a band, elect, scale."""
        elected = elect(self.weights, self.election, normalize=self.normalize)
        return band(self.density, self.gamma, rescale=self.rescale) | elected | scale(self.scale)
