"""The Cholesky factor of an inverse Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CurvatureError, MethodError
from .curvature import Curvature
from .gram import check_matrix
from .row_layout import RowLayout, plain_layout, row_layout

DAMPINGS = (0.01, 0.1, 1.0)  # of the mean diagonal: ten-fold until the factorisation holds


def inverse_factor(name: str, hessian: np.ndarray) -> np.ndarray:
    """Return the upper triangular U with `UᵀU = (H + damping·mean(diag H)·I)⁻¹`, shape (d, d), float64.

    One factorisation, from the last row upwards, gives H = R·Rᵀ with R upper triangular, and U = R⁻¹: no inverse is
    factorised again, as the authors' code does.

    Raises:
        MethodError: No damping up to 1 makes H positive definite.
    """
    mean = float(np.mean(np.diag(hessian)))
    for damping in DAMPINGS:
        damped = hessian[::-1, ::-1].copy()
        damped[np.diag_indices_from(damped)] += damping * mean
        try:
            upper = np.linalg.cholesky(damped)[::-1, ::-1]
            factor = np.triu(np.linalg.inv(upper))
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(factor).all():
            return factor
    raise MethodError(
        f"the Hessian of `{name}` is not positive definite, even when damped by its mean diagonal",
        hint="calibrate on more or on other samples",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class InverseFactors:
    """The factor of each matrix that a tensor is laid out as.

    Attributes:
        layout: How the tensor is laid out.
        diagonals: Of the factors, (stack, 1, width), or (1, rows, width) where each row has a Hessian of its own.
        factors: `inverse_factor` of each matrix, (stack, width, width), or None where the Hessian is diagonal.
    """

    layout: RowLayout
    diagonals: np.ndarray
    factors: np.ndarray | None = None


def inverse_factors(name: str, shape: tuple[int, ...], curvature: Curvature | None) -> InverseFactors:
    """Return the factors of a tensor: of the full Hessian if it was measured, else of the diagonal, else of H = I.

    Raises:
        CurvatureError: The Hessian has another number of inputs than the tensor.
        MethodError: The Hessian cannot be factorised.
    """
    if curvature is None or (curvature.gram is None and not curvature.terms):
        layout = plain_layout(shape)
        return InverseFactors(layout=layout, diagonals=np.ones((1, 1, layout.width)))
    if curvature.gram is None:
        return _diagonal_factors(name, shape, curvature)
    layout = row_layout(name, shape, curvature)
    matrices = curvature.gram if curvature.gram.ndim == 3 else curvature.gram[None]
    for matrix in matrices:
        check_matrix(name, matrix)
    factors = np.stack([inverse_factor(name, 2.0 * matrix + np.eye(layout.width)) for matrix in matrices])
    diagonals = np.diagonal(factors, axis1=1, axis2=2)[:, None, :].copy()
    return InverseFactors(layout=layout, diagonals=diagonals, factors=factors)


def _diagonal_factors(name: str, shape: tuple[int, ...], curvature: Curvature) -> InverseFactors:
    """Return a tensor's factors without a full Hessian: that of a diagonal one is diagonal, `1/sqrt(H_jj)`."""
    total: Any = sum(curvature.terms)
    if total.ndim != len(shape) or any(t not in (1, s) for t, s in zip(total.shape, shape, strict=True)):
        raise CurvatureError(f"the statistics of `{name}` have shape {list(total.shape)}, the tensor has {list(shape)}")
    layout = plain_layout(shape)
    if total.ndim and total.shape[-1] == layout.width:
        lead = total.shape[:-1] if total.size == layout.width else shape[:-1]
        hessian = np.broadcast_to(2 * total + 1, (*lead, layout.width)).reshape(1, -1, layout.width)
    else:
        hessian = np.ones((1, 1, layout.width))  # a row's own scale changes no score
    return InverseFactors(layout=layout, diagonals=1 / np.sqrt(hessian + DAMPINGS[0] * hessian.mean()))
