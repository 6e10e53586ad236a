"""Σ x·xᵀ of the models of one tensor: checked, as means, and factorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import CurvatureError, MethodError
from .curvature import Curvature


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
    """Return the lower factor of a symmetric float64 torch tensor.

    Args:
        why: What the sentence about a failure ends in.
        hint: What helps then.

    Raises:
        MethodError: The matrix is not positive definite.
    """
    import torch

    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) or not bool(torch.isfinite(factor).all()):
        raise MethodError(f"the curvature of `{name}` cannot be factorised{why}", hint=hint)
    return factor
