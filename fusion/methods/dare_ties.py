"""DARE-TIES: DARE's sparsification in place of trimming, then TIES' election and disjoint mean.

    δ̂_k = M_k·δ_k/(1 − p_k),  M_k ~ Bernoulli(1 − p_k)
    σ   = sign Σ_k w_k·δ̂_k                               elected, per element; zero elects +
    W   = W_pre + λ·Σ_{k: sign = σ} w_k·δ̂_k / Σ_{k: sign = σ} w_k

Yu et al. (arXiv:2311.03099) on Yadav et al. (arXiv:2306.01708). mergekit's `dare_ties` sums instead of averaging
(`normalize` off) and rescales to the L1 norm of before (`rescale: l1`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..transforms.bernoulli import bernoulli
from ..transforms.chain import Chain
from ..transforms.merge import elect
from ..transforms.scale import scale
from .options import Dropped, Elected


@dataclass(frozen=True, kw_only=True)
class DareTies(Elected, Dropped):
    """Drop deltas at random, elect a sign for each element, and average the models that agree with it."""

    name: ClassVar[str] = "dare-ties"
    title: ClassVar[str] = "DARE-TIES"
    source: ClassVar[str] = "arXiv:2311.03099, arXiv:2306.01708"

    @cached_property
    def chain(self) -> Chain:
        """Drop, elect, scale."""
        elected = elect(self.weights, self.election, normalize=self.normalize)
        return bernoulli(self.sparsity, rescale=self.rescale) | elected | scale(self.scale)
