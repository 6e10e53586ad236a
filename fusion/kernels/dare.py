"""The kernel of `fusion.methods.dare` for one tuned model."""

from __future__ import annotations

import numpy as np

from ..tile import TWO_32, RawTile
from .blocks import LANES, SIZE, num_blocks, sum_block, sum_squares, word, zero_tail
from .compiler import compiled
from .elements import decoded, encoded, f32, f64, i32, seen, seen_output, u32, u64

_TWO_32 = f32(TWO_32)


@compiled
def _drop_and_rescale(base, tuned, out, start, key_low, key_high, keep, factor, rows):
    count, key_high, keep, factor = u64(base.size), u32(key_high), f32(keep), f32(factor)
    threshold, always, like = keep * _TWO_32, keep >= f32(1), out[0]
    magnitudes = np.empty(SIZE, f32)
    distances = np.empty(SIZE, f32)
    lanes = np.empty(LANES, f64)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        first = u32(u32(u64(start) + at) + u32(key_low))
        num_kept, num_nonzero = i32(0), i32(0)
        for i in range(size):
            b = decoded(base[at + i])
            delta = decoded(tuned[at + i]) - b
            nonzero = delta != f32(0)
            kept = ((f32(word(u32(first + u32(i)), key_high)) < threshold) | always) & nonzero
            fused = b + factor * delta
            stored = encoded(fused if kept else b, like)
            out[at + i] = stored
            magnitudes[i] = abs(delta)
            distances[i] = abs(decoded(stored) - b)
            num_kept = i32(num_kept + i32(kept))
            num_nonzero = i32(num_nonzero + i32(nonzero))
        zero_tail(magnitudes, size)
        zero_tail(distances, size)
        block = at // SIZE
        rows[0, block] = num_kept
        rows[1, block] = size - num_nonzero
        rows[2, block] = f64(0)
        rows[3, block] = sum_block(magnitudes, lanes)
        rows[4, block] = sum_block(distances, lanes)
        rows[5, block] = sum_squares(distances, lanes)


def drop_and_rescale(tile: RawTile, out: np.ndarray, keep: float, scale: float) -> np.ndarray:
    """Write `base + scale/keep·δ` where kept, else the base, into `out`; return the figures."""
    rows = np.empty((6, num_blocks(tile)))
    base, tuned, key = seen(tile.base), seen(tile.tuned[0]), tile.keys[0]
    _drop_and_rescale(base, tuned, seen_output(out), tile.start, key.low, key.high, keep, scale / keep, rows)
    return rows
