"""A number for each element of a tensor, in the smallest form that it repeats from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

CHUNK = 1 << 15  # elements whose float64 numbers stay in the second-level cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Repeated:
    """Element `i` of the tensor has `values[(i // (repeat·inner))·inner + i % inner]`.

    Attributes:
        values: float32, shape (outer·inner,).
        repeat: How many consecutive runs of `inner` elements share their values.
        inner: Length of a run.
    """

    values: np.ndarray
    repeat: int
    inner: int

    def expand(self, start: int, count: int) -> np.ndarray:
        """Return the values of elements `start … start + count − 1`, float32 of shape (count,)."""
        index = np.arange(start, start + count, dtype=np.int64)
        return self.values[index // (self.repeat * self.inner) * self.inner + index % self.inner]


@dataclass(frozen=True, kw_only=True, eq=False)
class Computed:
    """What a function makes of arrays that differ along other axes each, such as rows and columns of a tied embedding.

    It is computed where it is wanted: over all elements it would take more memory than the tensor.

    Attributes:
        function: Of arrays that broadcast against one another, element by element.
        arrays: float64, each axis the tensor's or 1.
    """

    function: Callable[..., np.ndarray]
    arrays: tuple[np.ndarray, ...]
    shape: tuple[int, ...]

    def expand(self, start: int, count: int) -> np.ndarray:
        """Return the values of elements `start … start + count − 1`, float32 of shape (count,)."""
        found = np.empty(count, np.float32)
        self.fill(start, found)
        return found

    def fill(self, start: int, out: np.ndarray) -> None:
        """Put the values of elements from `start` on into a float32 array."""
        *leading, width = self.shape
        stop, step = start + len(out), max(1, CHUNK // width)
        for row in range(start // width, -(-stop // width), step):
            last = min(row + step, -(-stop // width))
            values = self._rows(np.unravel_index(np.arange(row, last), leading)).reshape(-1)
            first, end = max(start, row * width), min(stop, last * width)
            out[first - start : end - start] = values[first - row * width : end - row * width]

    def _rows(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        parts = []
        for array in self.arrays:
            if any(size > 1 for size in array.shape[:-1]):
                own = (k if size > 1 else np.zeros_like(k) for k, size in zip(index, array.shape[:-1], strict=True))
                parts.append(array[tuple(own)])
            else:
                parts.append(array.reshape(1, -1))
        return np.broadcast_to(self.function(*parts), (len(index[0]), self.shape[-1]))


PerElement = Repeated | Computed


def per_element(array: np.ndarray, shape: tuple[int, ...]) -> Repeated:
    """Return an array that broadcasts to `shape`, rounded to float32."""
    array = array.astype(np.float32)
    layout = _outer_repeat_inner(shape, array.shape)
    if layout is None:
        array = np.ascontiguousarray(np.broadcast_to(array, shape))
        layout = 1, 1, prod(shape)
    return Repeated(values=array.reshape(-1), repeat=layout[1], inner=layout[2])


def computed(function: Callable[..., np.ndarray], arrays: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> PerElement:
    """Return what a function makes of arrays that broadcast to `shape`, rounded to float32.

    Computed at once where it takes no more than the largest of the arrays.
    """
    together = np.broadcast_shapes(*(array.shape for array in arrays))
    if prod(together) <= max(array.size for array in arrays):
        return per_element(function(*arrays), shape)
    return Computed(function=function, arrays=arrays, shape=shape)


def _outer_repeat_inner(shape: tuple[int, ...], term: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Return (outer, repeat, inner) with which `term` broadcasts to `shape`, or None if it takes more than one gap."""
    own = [t == s for t, s in zip(term, shape, strict=True)]
    gap = [i for i, same in enumerate(own) if not same]
    if not gap:
        return 1, 1, prod(shape)
    first, last = gap[0], gap[-1] + 1
    if any(own[i] and shape[i] != 1 for i in range(first, last)):
        return None
    return prod(shape[:first]), prod(shape[first:last]), prod(shape[last:])
