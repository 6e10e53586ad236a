"""The kernel of `fusion.budget`."""

from __future__ import annotations

import numpy as np

from ..tile import RawTile
from .blocks import LANES, SIZE, num_blocks, sum_block, zero_tail
from .compiler import compiled
from .elements import decoded, f32, f64, seen, u64


@compiled
def _l1_sums(base, tuned, rows):
    count = u64(base.size)
    deltas = np.empty(SIZE, f32)
    sizes = np.empty(SIZE, f32)
    lanes = np.empty(LANES, f64)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        for i in range(size):
            b = decoded(base[at + i])
            deltas[i] = abs(decoded(tuned[at + i]) - b)
            sizes[i] = abs(b)
        zero_tail(deltas, size)
        zero_tail(sizes, size)
        block = at // SIZE
        rows[0, block] = sum_block(deltas, lanes)
        rows[1, block] = sum_block(sizes, lanes)


def l1_sums(tile: RawTile) -> np.ndarray:
    """Return block sums of |δ| and of |base|."""
    rows = np.empty((2, num_blocks(tile)))
    _l1_sums(seen(tile.base), seen(tile.tuned[0]), rows)
    return rows
