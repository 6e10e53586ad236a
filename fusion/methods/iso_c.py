"""Iso-C: the deltas are added up, and all directions of the sum made equally strong.

    Σ_k δ_k = U·S·Vᵀ,       W = W_pre + λ·mean(S)·U·Vᵀ

Marczak et al., No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces, ICML 2025
(arXiv:2502.04959). What is no matrix gets the mean of the deltas. Directions in which the sum holds no more than
rounding stay at zero, as of adapters; the released code gives them the mean too, whichever they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..arithmetic.spectral import svd
from .by_matrix import ByMatrix


@dataclass(frozen=True, kw_only=True)
class IsoC(ByMatrix):
    """Add the deltas up, and give all singular directions of the sum the same strength.

    Attributes:
        scale: λ, the strength of the merged delta.
    """

    name: ClassVar[str] = "iso-c"
    title: ClassVar[str] = "Iso-C"
    source: ClassVar[str] = "arXiv:2502.04959"
    min_models: ClassVar[int] = 1
    bytes_per_element: ClassVar[int] = 48

    def merged(self, name: str, deltas: list[Any]) -> Any:  # noqa: ARG002
        """Return `mean(S)·U·Vᵀ`."""
        total = deltas.pop(0)
        while deltas:
            total += deltas.pop(0)
        size = min(total.shape)
        u, values, vh = svd(total)
        return (u @ vh).mul_(values.sum() / size)
