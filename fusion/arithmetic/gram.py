"""Σ x·xᵀ of the models of one tensor: checked, as means, and factorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import CurvatureError, MethodError
from .curvature import Curvature

STRIP = 512  # rows that are solved for at once: enough that it is as fast as all, fixed so that no bit depends on it


def check_matrix(name: str, matrix: np.ndarray) -> None:
    """Refuse a matrix that cannot be a Σ x·xᵀ.

    Args:
        matrix: (width, width).

    Raises:
        CurvatureError: It holds NaN or infinity, or a negative sum of squares.
    """
    if not np.isfinite(matrix).all() or (np.diagonal(matrix) < 0).any():
        raise CurvatureError(f"the full Hessian of `{name}` holds a negative or non-finite sum of squares")


def refuse_other_shapes(name: str, curvatures: Sequence[Curvature | None]) -> None:
    """Refuse models whose full Hessians cannot be put together.

    Raises:
        CurvatureError: They have another number of inputs, or are stacked where others are not.
    """
    shapes = sorted({found.gram.shape for found in curvatures if found is not None and found.gram is not None})
    if len(shapes) > 1:
        first, second = map(list, shapes[:2])
        raise CurvatureError(
            f"the full Hessians of `{name}` have shapes {first} and {second} in different models",
            hint="calibrate the models that are fused",
        )


def mean_matrix(name: str, curvature: Curvature, stack: int, device: Any) -> Any:
    """Return E[x·xᵀ] of one of the stacked matrices, a float64 torch tensor of shape (width, width) to be changed.

    Raises:
        CurvatureError: It is no sum of squares.
    """
    import torch

    gram: Any = curvature.gram
    one = gram[stack] if gram.ndim == 3 else gram
    check_matrix(name, one)
    return torch.from_numpy(one.astype(np.float64)).to(device).div_(curvature.num_tokens)


def cholesky(name: str, matrix: Any, *, why: str = "", hint: str) -> Any:
    """Return the lower factor of a symmetric float64 torch tensor, in whose memory it lies where torch can do that.

    Args:
        matrix: It is used up.
        why: What the sentence about a failure ends in.
        hint: What helps then.

    Raises:
        MethodError: The matrix is not positive definite.
    """
    import torch

    refusal = MethodError(f"the curvature of `{name}` cannot be factorised{why}", hint=hint)
    room = matrix.mT  # LAPACK goes by columns
    try:
        factor = torch.linalg.cholesky(room, out=room)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise refusal from error
    if not bool(torch.isfinite(factor.diagonal()).all()):
        raise refusal
    return factor


def divided(matrix: Any, factor: Any, dtype: Any) -> Any:
    """Return `matrix·(L·Lᵀ)⁻¹`, a torch tensor of the matrix's shape.

    Some rows at a time, so that what comes back is all the memory it takes.

    Args:
        matrix: Float64 torch tensor, (rows, width).
        factor: L, (width, width).
        dtype: torch's, of what comes back.
    """
    import torch

    found = torch.empty(matrix.shape, dtype=dtype, device=matrix.device)
    for start in range(0, len(matrix), STRIP):
        part = slice(start, start + STRIP)
        half = torch.linalg.solve_triangular(factor, matrix[part].mT, upper=False)
        found[part] = torch.linalg.solve_triangular(factor.mT, half, upper=True).mT
    return found
