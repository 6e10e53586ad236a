"""TSV-M: each model keeps its own share of singular directions, and these are made orthogonal to one another.

    δ_k ≈ U_k·S_k·V_kᵀ          the n/K largest of the n singular values
    U = [U_1 … U_K],  V = [V_1 … V_K],  S = diag(S_1, …, S_K)
    W = W_pre + λ·Û·S·V̂ᵀ        X̂ the nearest matrix with orthonormal columns: P·Qᵀ of X = P·D·Qᵀ

Gargiulo et al., Task Singular Vectors, CVPR 2025 (arXiv:2412.00081). What is no matrix gets the mean of the deltas. A
model that did not change a matrix has no share of it, and directions that hold no more than rounding are left out, as
of an adapter; the released code takes both in, whatever the solver made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..arithmetic.spectral import polar, svd
from .by_matrix import ByMatrix


@dataclass(frozen=True, kw_only=True)
class TsvM(ByMatrix):
    """Combine the largest singular directions of each model, made orthogonal to those of the others.

    Attributes:
        scale: λ, the strength of the merged delta.
    """

    name: ClassVar[str] = "tsv-m"
    title: ClassVar[str] = "TSV-M"
    source: ClassVar[str] = "arXiv:2412.00081"
    bytes_per_element: ClassVar[int] = 64

    def merged(self, name: str, deltas: list[Any]) -> Any:  # noqa: ARG002
        """Return `Û·S·V̂ᵀ`."""
        import torch

        share = max(1, min(deltas[0].shape) // len(deltas))
        lefts, values, rights = [], [], []
        while deltas:
            u, s, vh = svd(deltas.pop(0))
            lefts.append(u[:, :share].clone())  # of a view the whole would stay
            values.append(s[:share])
            rights.append(vh[:share].clone())
            del u, vh
        left = polar(torch.cat(lefts, 1))
        left.mul_(torch.cat(values))
        return left @ polar(torch.cat(rights))
