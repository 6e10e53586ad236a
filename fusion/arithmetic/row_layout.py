"""How a tensor is laid out as rows over the inputs of its Hessian."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..errors import CurvatureError
from .curvature import Curvature


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """A tensor as stacked matrices whose columns meet the inputs.

    Attributes:
        shape: Of the tensor.
        order: Its axes, those of the stack first, then the outputs, then the inputs.
        stack: Number of matrices; more than 1 for the stacked experts of a layer or the groups of a convolution.
        width: Number of inputs.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    stack: int
    width: int

    @property
    def rows(self) -> int:
        """Rows of each matrix."""
        return prod(self.shape) // (self.stack * self.width)

    @property
    def is_in_order(self) -> bool:
        """Whether rows lie in the tensor one after the other."""
        return self.order == tuple(range(len(self.shape)))

    @property
    def one(self) -> RowLayout:
        """One of the stacked matrices, whose elements lie in the tensor one after the other."""
        return RowLayout(
            shape=(self.shape[0] // self.stack, *self.shape[1:]), order=self.order, stack=1, width=self.width
        )

    def runs(self, most: int, start: int, stop: int) -> Iterator[range]:
        """Yield the runs that elements `start … stop − 1` lie in, as elements of the tensor.

        A run is whole rows of one of the stacked matrices, and begins where it would for the whole tensor; it is all
        rows of it where they do not lie one after the other.

        Args:
            most: Elements of a run, unless a row has more.
        """
        size = self.rows * self.width
        step = max(1, most // self.width) * self.width if self.is_in_order else size
        while start < stop:
            matrix = start // size * size
            first = matrix + (start - matrix) // step * step
            start = min(first + step, matrix + size)
            yield range(first, start)

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


def plain_layout(shape: tuple[int, ...], *, outputs: int | None = None) -> RowLayout:
    """Return a tensor as one matrix, which needs no statistics.

    Args:
        outputs: How many leading axes are the outputs; None is all but the last.
    """
    width = prod(shape[-1:] if outputs is None else shape[outputs:])
    return RowLayout(shape=shape, order=tuple(range(len(shape))), stack=1, width=max(1, width))


def row_layout(name: str, shape: tuple[int, ...], curvature: Curvature) -> RowLayout:
    """Return how a tensor of this shape meets the full Hessian of its curvature.

    Raises:
        CurvatureError: The Hessian has another number of inputs than the tensor.
    """
    gram = curvature.gram
    assert gram is not None
    stacked = gram.ndim == 3
    for inputs in _candidates(shape, curvature, first=1 if stacked else 0):
        width = prod(shape[axis] for axis in inputs)
        if width == gram.shape[-1] and (not stacked or shape[0] % gram.shape[0] == 0):
            order = _order(len(shape), inputs, stacked)
            return RowLayout(shape=shape, order=order, stack=gram.shape[0] if stacked else 1, width=width)
    raise CurvatureError(
        f"the full Hessian of `{name}` has shape {list(gram.shape)}, which does not fit the tensor's {list(shape)}",
        hint="calibrate the model that is fused",
    )


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
