"""Singular vectors of deltas, without those that only rounding tells apart."""

from __future__ import annotations

from typing import Any


def svd(matrix: Any) -> tuple[Any, Any, Any]:
    """Return U (rows, n), the singular values (n,) and Vᵀ (n, columns) of a float torch matrix, largest first.

    Those that are no more than rounding are left out: their vectors are whatever the solver happened upon. Of a matrix
    that is not finite all is NaN, so that whose it is is looked for.
    """
    import torch

    if not bool(torch.isfinite(matrix).all()):
        nan = float("nan")
        return matrix.new_full((len(matrix), 1), nan), matrix.new_full((1,), nan), matrix[:1] * nan
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    least = values[:1].sum() * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    count = int((values > least).sum())
    return u[:, :count], values[:count], vh[:count]


def polar(matrix: Any) -> Any:
    """Return the nearest matrix with orthonormal rows or columns, whichever are fewer: U·Vᵀ of its singular vectors."""
    u, _, vh = svd(matrix)
    return u @ vh
