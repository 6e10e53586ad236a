"""The Cholesky factor of an inverse Hessian, and how a tensor is laid out as rows over the Hessian's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from .curvature import Curvature
from .errors import CurvatureError, MethodError

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
class Rows:
    """A tensor as stacked matrices whose columns meet the inputs.

    Attributes:
        shape: Of the tensor.
        order: Its axes, those of the stack first, then the outputs, then the inputs.
        stack: Number of matrices; more than 1 for the stacked experts of a layer.
        width: Number of inputs.
        diagonals: Of the factors, (stack, 1, width), or (1, rows, width) where each row has a Hessian of its own.
        factors: `inverse_factor` of each matrix, (stack, width, width), or None where the Hessian is diagonal.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    stack: int
    width: int
    diagonals: np.ndarray
    factors: np.ndarray | None = None

    def split(self, flat: Any) -> Any:
        """Return the elements of the tensor as (stack, rows, width)."""
        xp = array_namespace(flat)
        ordered = xp.permute_dims(xp.reshape(flat, self.shape), self.order) if self.shape else flat
        return xp.reshape(ordered, (self.stack, -1, self.width))

    def join(self, matrices: Any) -> Any:
        """Return what `split` took apart, shape (n,)."""
        xp = array_namespace(matrices)
        if not self.shape:
            return xp.reshape(matrices, (-1,))
        ordered = xp.reshape(matrices, tuple(self.shape[axis] for axis in self.order))
        back = tuple(int(axis) for axis in np.argsort(self.order))
        return xp.reshape(xp.permute_dims(ordered, back), (-1,))


def rows_of(name: str, shape: tuple[int, ...], curvature: Curvature | None) -> Rows:
    """Return how a tensor meets its Hessian: the full one if it was measured, else the diagonal, else H = I.

    Raises:
        CurvatureError: The Hessian has another number of inputs than the tensor.
        MethodError: The Hessian cannot be factorised.
    """
    if curvature is None or (curvature.gram is None and not curvature.terms):
        width = shape[-1] if shape else 1
        order = tuple(range(len(shape)))
        return Rows(shape=shape, order=order, stack=1, width=width, diagonals=np.ones((1, 1, width)))
    if curvature.gram is None:
        return _diagonal_rows(name, shape, curvature)
    gram = curvature.gram
    stacked = gram.ndim == 3
    for inputs in _candidates(shape, curvature, first=1 if stacked else 0):
        order, width = _order(len(shape), inputs, stacked), prod(shape[axis] for axis in inputs)
        if width == gram.shape[-1] and (not stacked or gram.shape[0] == shape[0]):
            break
    else:
        raise CurvatureError(
            f"the full Hessian of `{name}` has shape {list(gram.shape)}, which does not fit the tensor's {list(shape)}",
            hint="calibrate the model that is fused",
        )
    matrices = gram if stacked else gram[None]
    factors = np.stack([inverse_factor(name, 2 * matrix + np.eye(width)) for matrix in matrices])
    diagonals = np.diagonal(factors, axis1=1, axis2=2)[:, None, :].copy()
    return Rows(shape=shape, order=order, stack=len(factors), width=width, diagonals=diagonals, factors=factors)


def _order(rank: int, inputs: tuple[int, ...], stacked: bool) -> tuple[int, ...]:
    first = (0,) if stacked else ()
    outputs = tuple(axis for axis in range(rank) if axis not in inputs and axis not in first)
    return (*first, *outputs, *inputs)


def _candidates(shape: tuple[int, ...], curvature: Curvature, *, first: int) -> Iterator[tuple[int, ...]]:
    """Yield the axes that may be the inputs: those along which a term of the diagonal varies, then trailing ones."""
    axes = range(first, len(shape))
    for term in curvature.terms:
        if term.ndim == len(shape):
            yield tuple(axis for axis in axes if term.shape[axis] != 1 or shape[axis] == 1)
            yield tuple(axis for axis in axes if term.shape[axis] != 1)
    for start in axes:
        yield tuple(range(start, len(shape)))


def _diagonal_rows(name: str, shape: tuple[int, ...], curvature: Curvature) -> Rows:
    """Return a tensor without a full Hessian: the factor of a diagonal one is diagonal, `1/sqrt(H_jj)`."""
    total: Any = sum(curvature.terms)
    if total.ndim != len(shape) or any(t not in (1, s) for t, s in zip(total.shape, shape, strict=True)):
        raise CurvatureError(f"the statistics of `{name}` have shape {list(total.shape)}, the tensor has {list(shape)}")
    order, width = tuple(range(len(shape))), shape[-1] if shape else 1
    if total.ndim and total.shape[-1] == width:
        lead = total.shape[:-1] if total.size == width else shape[:-1]
        hessian = np.broadcast_to(2 * total + 1, (*lead, width)).reshape(1, -1, width)
    else:
        hessian = np.ones((1, 1, width))  # a row's own scale changes no score
    diagonals = 1 / np.sqrt(hessian + DAMPINGS[0] * hessian.mean())
    return Rows(shape=shape, order=order, stack=1, width=width, diagonals=diagonals)
