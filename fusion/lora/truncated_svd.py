"""The best approximation of a given rank: of thin matrices' product exactly, of a large matrix by projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np

OVERSAMPLING = 10  # columns beyond the rank; Halko, Martinsson, Tropp (arXiv:0909.4061), §1.3
POWER_ITERATIONS = 3
DENSE_BELOW = 1 << 20  # elements of a matrix that is decomposed whole

Blocks = Callable[[], Iterator[tuple[slice, np.ndarray]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Truncated:
    """`left·right`, with the singular values shared evenly between them.

    Attributes:
        left: float32, shape (rows, r).
        right: float32, shape (r, columns).
        squares: ‖matrix‖_F².
        kept: What of that the approximation has.
    """

    left: np.ndarray
    right: np.ndarray
    squares: float
    kept: float

    @property
    def rank(self) -> int:
        """Columns of `left`."""
        return self.left.shape[1]

    @property
    def error(self) -> float:
        """‖matrix − left·right‖_F / ‖matrix‖_F; 0 for a zero matrix."""
        return sqrt(max(0.0, 1 - self.kept / self.squares)) if self.squares else 0.0


def rank_for(values: np.ndarray, squares: float, rank: int | None, energy: float | None) -> int:
    """Return how many singular values to keep, at least 1: `rank`, or as many as hold `energy` of the squares."""
    if energy is None:
        assert rank is not None
        return max(1, min(rank, len(values)))
    held = np.cumsum(values**2)
    enough = int(np.searchsorted(held, energy * squares * (1 - 1e-12))) + 1
    return max(1, min(enough, len(values), rank or len(values)))


def _truncate(
    u: np.ndarray, values: np.ndarray, vt: np.ndarray, squares: float, rank: int | None, energy: float | None
) -> Truncated:
    r = rank_for(values, squares, rank, energy)
    root = np.sqrt(values[:r])
    return Truncated(
        left=np.ascontiguousarray(u[:, :r] * root, dtype=np.float32),
        right=np.ascontiguousarray(root[:, None] * vt[:r], dtype=np.float32),
        squares=squares,
        kept=float(np.sum(values[:r] ** 2)),
    )


def of_product(
    left: np.ndarray, right: np.ndarray, *, rank: int | None = None, energy: float | None = None
) -> Truncated:
    """Return the best approximation of `left·right`, exactly and without forming it.

    With QR decompositions of both factors only a square matrix of the inner dimension is decomposed:
    `Q_l·(R_l·R_rᵀ)·Q_rᵀ`. In float64.
    """
    q_left, r_left = np.linalg.qr(left.astype(np.float64))
    q_right, r_right = np.linalg.qr(right.astype(np.float64).T)
    u, values, vt = np.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return _truncate(q_left @ u, values, vt @ q_right.T, float(np.sum(values**2)), rank, energy)


def of_matrix(
    shape: tuple[int, int], blocks: Blocks, *, rank: int | None = None, energy: float | None = None, seed: int = 0
) -> Truncated:
    """Return a near-best approximation of a matrix that is given in blocks of rows, any number of times.

    Large matrices by randomised projection with power iterations (Halko, Martinsson and Tropp), with twice the
    columns until `energy` is reached; small ones exactly.

    Args:
        blocks: Yields rows and their values, float32, shape (len(rows), columns).
    """
    rows, columns = shape
    squares = sum(float(np.square(block, dtype=np.float64).sum()) for _, block in blocks())
    width = (rank or 16) + OVERSAMPLING
    while rows * columns >= DENSE_BELOW and 2 * width < min(shape):
        u, values, vt = _project(shape, blocks, width, np.random.default_rng(seed))
        held = float(np.sum(values[:-OVERSAMPLING] ** 2))
        if energy is None or held >= energy * squares or (rank is not None and width >= rank + OVERSAMPLING):
            return _truncate(u, values[:-OVERSAMPLING], vt, squares, rank, energy)
        width *= 2
    whole = np.concatenate([block for _, block in blocks()]).astype(np.float64)
    u, values, vt = np.linalg.svd(whole, full_matrices=False)
    return _truncate(u, values, vt, squares, rank, energy)


def _project(
    shape: tuple[int, int], blocks: Blocks, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the leading singular triplets within a subspace of `width` dimensions."""
    rows, columns = shape
    basis = rng.standard_normal((columns, width), np.float32)
    q, back = np.empty((rows, width), np.float32), np.empty((columns, width))
    for _ in range(POWER_ITERATIONS):
        sketch = np.empty((rows, width), np.float32)
        for span, block in blocks():
            sketch[span] = block @ basis
        q = np.linalg.qr(sketch)[0]
        back[:] = 0
        for span, block in blocks():
            back += block.T @ q[span]
        basis = np.linalg.qr(back)[0].astype(np.float32)
    u, values, vt = np.linalg.svd(back.T, full_matrices=False)
    return q.astype(np.float64) @ u, values, vt
