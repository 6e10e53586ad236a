"""The kernel of `fusion.methods.task_arithmetic` for one tuned model."""

from __future__ import annotations

import numpy as np

from ..tile import RawTile
from .blocks import LANES, SIZE, num_blocks, sum_block, sum_squares, zero_tail
from .compiler import compiled
from .elements import decoded, encoded, f32, f64, i32, seen, seen_output, u64


@compiled
def _add_scaled(base, tuned, out, scale, rows):
    count, scale, like = u64(base.size), f32(scale), out[0]
    nothing, whole = scale == f32(0), scale == f32(1)
    magnitudes = np.empty(SIZE, f32)
    distances = np.empty(SIZE, f32)
    lanes = np.empty(LANES, f64)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        num_nonzero = i32(0)
        for i in range(size):
            b = decoded(base[at + i])
            t = decoded(tuned[at + i])
            delta = t - b
            nonzero = delta != f32(0)
            fused = b + scale * delta
            fused = b if nothing | (not nonzero) else fused
            fused = t if whole else fused
            stored = encoded(fused, like)
            out[at + i] = stored
            magnitudes[i] = abs(delta)
            distances[i] = abs(decoded(stored) - b)
            num_nonzero = i32(num_nonzero + i32(nonzero))
        zero_tail(magnitudes, size)
        zero_tail(distances, size)
        block = at // SIZE
        rows[0, block] = num_nonzero
        rows[1, block] = size - num_nonzero
        rows[2, block] = f64(0)
        rows[3, block] = sum_block(magnitudes, lanes)
        rows[4, block] = sum_block(distances, lanes)
        rows[5, block] = sum_squares(distances, lanes)


def add_scaled(tile: RawTile, out: np.ndarray, scale: float) -> np.ndarray:
    """Write `base + scale·δ` into `out`; return the figures."""
    rows = np.empty((6, num_blocks(tile)))
    _add_scaled(seen(tile.base), seen(tile.tuned[0]), seen_output(out), scale, rows)
    return rows
