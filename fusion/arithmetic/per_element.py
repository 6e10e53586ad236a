"""A number for each element of a tensor, in the smallest form that it repeats from."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class PerElement:
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
        """Return the values of elements `start … start + count − 1`, shape (count,)."""
        index = np.arange(start, start + count, dtype=np.int64)
        return self.values[index // (self.repeat * self.inner) * self.inner + index % self.inner]


def per_element(array: np.ndarray, shape: tuple[int, ...]) -> PerElement:
    """Return an array that broadcasts to `shape`, rounded to float32."""
    array = array.astype(np.float32)
    layout = _outer_repeat_inner(shape, array.shape)
    if layout is None:
        array = np.ascontiguousarray(np.broadcast_to(array, shape))
        layout = 1, 1, prod(shape)
    return PerElement(values=array.reshape(-1), repeat=layout[1], inner=layout[2])


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
