"""DG-Hard: of each delta only the singular directions that stand out of noise are kept.

    δ = U·S·Vᵀ,     W = W_pre + U·S·[S > θ·τ]·Vᵀ,       τ = ω(β)·median(S)/μ_β,      β = min/max of the shape

The cut that loses least where δ is of low rank plus noise of unknown strength: Gavish & Donoho, The Optimal Hard
Threshold for Singular Values is 4/√3, IEEE TIT 2014 (arXiv:1305.5870). As in the released `dghard`: tensors of fewer
than 1,024 elements, and what is no matrix, are the fine-tune's; of an even number of singular values the lower median
counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from scipy.integrate import quad
from scipy.optimize import brentq
from sculpt.fusion.methods.by_matrix import ByMatrix

SMALL = 1024


def omega(beta: float) -> float:
    """Return the optimal cut in units of the noise, eq. 11 of the paper."""
    return math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta * beta + 14 * beta + 1)))


@lru_cache
def median_of_noise(beta: float) -> float:
    """Return μ_β, the median singular value of noise: the root of the Marchenko–Pastur distribution's median."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def below(upper: float) -> float:
        # Substituting λ = low + (high − low)·sin²φ leaves nothing to diverge at either end.
        def density(phi: float) -> float:
            sine, cosine = math.sin(phi), math.cos(phi)
            value = low + (high - low) * sine * sine
            return (high - low) ** 2 * (sine * cosine) ** 2 / (math.pi * beta * value) if value else 0.0

        return quad(density, 0, math.asin(math.sqrt((upper - low) / (high - low))))[0]

    return math.sqrt(brentq(lambda upper: below(upper) - 0.5 * below(high), low, high))


@dataclass(frozen=True, kw_only=True)
class DgHard(ByMatrix):
    """Keep the singular directions of the delta that stand out of noise.

    Attributes:
        threshold: θ, in units of the optimal cut.
    """

    threshold: float = 1.0

    name: ClassVar[str] = "dg-hard"
    title: ClassVar[str] = "DG-Hard"
    source: ClassVar[str] = "arXiv:1305.5870"
    min_models: ClassVar[int] = 1
    max_models: ClassVar[int | None] = 1
    bytes_per_element: ClassVar[int] = 64

    def merged(self, name: str, deltas: list[Any]) -> Any:  # noqa: ARG002
        """Return the delta without what does not stand out."""
        import torch

        (delta,) = deltas
        if delta.numel() < SMALL:
            return delta
        u, values, vh = torch.linalg.svd(delta, full_matrices=False)
        beta = min(delta.shape) / max(delta.shape)
        cut = self.threshold * omega(beta) * values.median() / median_of_noise(beta)
        return (u * values.where(values > cut, 0)) @ vh
