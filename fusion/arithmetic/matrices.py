"""A tensor of every model as stacked matrices: what transforms work on that need more than a run of elements."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, final

import numpy as np
from array_api_compat import array_namespace, to_device

from .group import Group
from .passes import Fused
from .row_layout import RowLayout
from .tile import Tile

CHUNK = 1 << 22  # elements that are read and multiplied at once: fixed, so that no bit depends on tiles or threads

ReadRange = Callable[[int, int], Sequence[np.ndarray]]  # start, stop -> elements of base and tuned models, as stored
Models = tuple[Any, ...]  # one array a model, the base first
Rows = tuple[slice, tuple[np.ndarray, ...]]  # which rows of a matrix, and what every model has there


@dataclass(frozen=True, kw_only=True, eq=False)
class Whole:
    """What a matrix transform made of a tensor: what `delivered` hands out tile by tile.

    Attributes:
        values: Fused elements, float32 or float64, shape (n,).
        kept: Which deltas had a part in it; bool, shape (n,).
    """

    values: np.ndarray
    kept: np.ndarray


@final
class Matrices:
    """Base and tuned models of one tensor as (stack, rows, width), read when asked for.

    Args:
        read: Returns stored elements of every model.
        place: Puts a NumPy array where the method computes; the identity on a CPU.
        device: Where that is, as torch names it.
    """

    def __init__(
        self,
        group: Group,
        read: ReadRange,
        *,
        place: Callable[[np.ndarray], Any] = lambda array: array,
        device: str = "cpu",
    ) -> None:
        self.group = group
        self.device = device
        self._read = read
        self._place = place

    def flat(self, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Return elements `start … stop − 1` of every model, in float32, or float64 where any model stores that."""
        arrays = self._read(start, stop)
        wide = any(array.dtype == np.float64 for array in arrays)
        return tuple(array.astype(np.float64 if wide else np.float32) for array in arrays)

    def stacked(self, layout: RowLayout) -> Iterator[Models]:
        """Yield each of the stacked matrices whole, where the method computes: one (rows, width) array a model."""
        if layout.is_in_order:
            size = layout.rows * layout.width
            for k in range(layout.stack):
                models = self.flat(k * size, (k + 1) * size)
                yield tuple(self._place(model.reshape(layout.rows, layout.width)) for model in models)
        else:
            models = [layout.split(model) for model in self.flat(0, prod(layout.shape))]
            for k in range(layout.stack):
                yield tuple(self._place(np.ascontiguousarray(model[k])) for model in models)

    def stacks(self, layout: RowLayout) -> Iterator[tuple[int, Callable[[], Iterator[Rows]]]]:
        """Yield each of the stacked matrices as what yields runs of its whole rows, as often as it is called.

        A run is which of its rows, and a NumPy array (count, width) of every model. Rows that do not lie in the tensor
        one after the other cannot be read apart: then a matrix comes whole.
        """
        for k in range(layout.stack):
            yield k, functools.partial(self.runs, layout, k)

    def runs(self, layout: RowLayout, k: int) -> Iterator[Rows]:
        """Yield runs of whole rows of one of the stacked matrices."""
        size = layout.rows * layout.width
        for run in layout.runs(CHUNK, k * size, (k + 1) * size):
            first, last = ((place - k * size) // layout.width for place in (run.start, run.stop))
            yield slice(first, last), self.rows(layout, run)

    def rows(self, layout: RowLayout, run: range) -> Models:
        """Return the rows of a run, a NumPy array (count, width) of every model."""
        models = self.flat(run.start, run.stop)
        if layout.is_in_order:
            return tuple(model.reshape(-1, layout.width) for model in models)
        return tuple(layout.one.split(model)[0] for model in models)


def host(array: Any) -> np.ndarray:
    """Return an array as NumPy's, wherever it was computed."""
    return np.asarray(to_device(array, "cpu")) if not isinstance(array, np.ndarray) else array


def whole_of(layout: RowLayout, parts: Sequence[tuple[Any, Any]]) -> Whole:
    """Return the values and the kept deltas of stacked matrices, each (rows, width), as those of the tensor."""
    values, kept = (layout.join(np.stack([host(part) for part in found])) for found in zip(*parts, strict=True))
    return Whole(values=values, kept=kept)


def delivered(tile: Tile) -> Fused:
    """Return a tile of what a matrix transform made of the whole tensor: the map of every such method."""
    xp, whole = array_namespace(tile.base), tile.prepared
    part = slice(tile.start, tile.start + tile.base.shape[0])
    values, kept = (xp.asarray(found[part], device=tile.base.device) for found in (whole.values, whole.kept))
    return Fused(values=values, kept=kept)


def added(base: np.ndarray, moved: Any) -> np.ndarray:
    """Return `base + moved`, the bits of the base where nothing moved: -0 stays -0."""
    return np.where(moved == 0, base, base + moved)


def differs(base: np.ndarray, tuned: Sequence[np.ndarray]) -> np.ndarray:
    """Return where any model differs from the base."""
    return np.logical_or.reduce([model != base for model in tuned])
