"""δ = s·B·A, any range of it, with the same bits however it is cut.

An element is `s·Σ_k b_k·a_k`, added in order of k in float64 and rounded to float32 once. Products of float32 numbers
are exact in float64, so it makes no difference whether a machine contracts multiply and add; and no element depends
on its neighbours, so none on tile size or thread count, as it would in a BLAS. Large ranges run in a compiled kernel,
small ones in NumPy, with equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

COMPILED_FROM = 1 << 24  # multiplications of a whole product; below, NumPy is done before Numba is imported
KERNEL_COLUMNS = 1024  # a run of float64 sums that stays in the first-level cache


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """One or several (stacked) products of two thin matrices, in the layout of the tensor that they change.

    Attributes:
        left: float32, shape (experts, rows, r).
        right: float32, shape (experts, r, columns).
        scale: s.
    """

    left: np.ndarray
    right: np.ndarray
    scale: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(experts, rows, columns): the flat order of the elements."""
        return (*self.left.shape[:2], self.right.shape[2])

    def delta(self, start: int, stop: int) -> np.ndarray:
        """Return elements `start … stop − 1` of the flattened δ, float32."""
        out = np.empty(stop - start, np.float32)
        multiply = _compiled() if self.left.size * self.shape[2] >= COMPILED_FROM else _multiply
        done = 0
        for expert, rows, columns in self._pieces(start, stop):
            count = (rows.stop - rows.start) * (columns.stop - columns.start)
            piece = out[done : done + count].reshape(rows.stop - rows.start, -1)
            multiply(self.left[expert, rows], self.right[expert], columns.start, self.scale, piece)
            done += count
        return out

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
        """Cut a range into rectangles: a part of a row, whole rows of one expert, a part of a row."""
        _, rows, columns = self.shape
        while start < stop:
            row, column = divmod(start, columns)
            expert, first = divmod(row, rows)
            if column or stop - start < columns:
                end = min(columns, column + stop - start)
                yield expert, slice(first, first + 1), slice(column, end)
                start += end - column
            else:
                last = min(rows, first + (stop - start) // columns)
                yield expert, slice(first, last), slice(0, columns)
                start += (last - first) * columns


def _multiply(left: np.ndarray, right: np.ndarray, column: int, scale: float, out: np.ndarray) -> None:
    """Write `scale·left·right` into `out`, from a column of `right` on: the definition."""
    wide_left, wide_right = left.astype(np.float64), right[:, column : column + out.shape[1]].astype(np.float64)
    sums = np.zeros(out.shape)
    with np.errstate(all="ignore"):
        for k in range(left.shape[1]):
            sums += wide_left[:, k, None] * wide_right[k]
        out[:] = scale * sums


@cache
def _compiled() -> Callable[..., Any]:
    import numba

    @numba.njit(nogil=True, error_model="numpy", cache=True)
    def multiply(left: np.ndarray, right: np.ndarray, column: int, scale: float, out: np.ndarray) -> None:
        num_rows, num_columns = out.shape
        rank = left.shape[1]
        sums = np.empty(KERNEL_COLUMNS)
        wide = np.empty((rank, KERNEL_COLUMNS))
        for first in range(0, num_columns, KERNEL_COLUMNS):
            width = min(KERNEL_COLUMNS, num_columns - first)
            for k in range(rank):
                for j in range(width):
                    wide[k, j] = right[k, column + first + j]
            for row in range(num_rows):
                for j in range(width):
                    sums[j] = 0.0
                for k in range(0, rank - rank % 2, 2):  # two at a time: sums are loaded and stored half as often
                    one, two = np.float64(left[row, k]), np.float64(left[row, k + 1])
                    for j in range(width):
                        sums[j] = (sums[j] + one * wide[k, j]) + two * wide[k + 1, j]
                if rank % 2:
                    one = np.float64(left[row, rank - 1])
                    for j in range(width):
                        sums[j] += one * wide[rank - 1, j]
                for j in range(width):
                    out[row, first + j] = scale * sums[j]

    return multiply
