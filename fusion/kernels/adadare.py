"""The kernels of `fusion.methods.adadare`."""

from __future__ import annotations

import numpy as np

from ..tile import TWO_32, RawTile
from .blocks import (
    ANY,
    LANES,
    SIZE,
    num_blocks,
    root_block,
    root_of,
    sum_block,
    sum_squares,
    word,
    zero_tail,
)
from .compiler import compiled
from .elements import bits_of, decoded, encoded, f32, f64, float_of, i32, seen, seen_output, u32, u64

_TWO_32 = f32(TWO_32)


@compiled
def _score_sums(base, tuned, values, repeat, inner, start, rows):
    count, start, repeat, inner = u64(base.size), u64(start), u64(repeat), u64(inner)
    root = np.empty(SIZE, f32)
    scores = np.empty(SIZE, f32)
    lanes = np.empty(LANES, f64)
    held = np.full(2, ANY, u64)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        root_block(values, repeat, inner, start + at, size, root, held)
        nonzero = i32(0)
        largest = u32(0)  # the bits of a float32 that is not negative are ordered as it is, and NaN is on top
        for i in range(size):
            s = root[i] * abs(decoded(tuned[at + i]) - decoded(base[at + i]))
            scores[i] = s
            nonzero = i32(nonzero + i32(s > f32(0)))
            largest = max(largest, bits_of(s))
        zero_tail(scores, size)
        block = at // SIZE
        rows[0, block] = sum_block(scores, lanes)
        rows[1, block] = sum_squares(scores, lanes)
        rows[2, block] = nonzero
        rows[3, block] = float_of(largest)


def score_sums(tile: RawTile) -> np.ndarray:
    """Return block sums of s, s², the number of non-zero s, and block maxima of s."""
    rows = np.empty((4, num_blocks(tile)))
    _score_sums(seen(tile.base), seen(tile.tuned[0]), *root_of(tile), tile.start, rows)
    return rows


@compiled
def _clipped_sums(base, tuned, values, repeat, inner, start, c, rows):
    count, start, repeat, inner, c = u64(base.size), u64(start), u64(repeat), u64(inner), f32(c)
    root = np.empty(SIZE, f32)
    scores = np.empty(SIZE, f32)
    lanes = np.empty(LANES, f64)
    held = np.full(2, ANY, u64)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        root_block(values, repeat, inner, start + at, size, root, held)
        clipped = i32(0)
        for i in range(size):
            s = root[i] * abs(decoded(tuned[at + i]) - decoded(base[at + i]))
            clip = c * s >= f32(1)
            scores[i] = s if clip else f32(0)
            clipped = i32(clipped + i32(clip))
        block = at // SIZE
        rows[0, block] = clipped
        rows[1, block] = f64(0)
        rows[2, block] = f64(0)
        if clipped:
            zero_tail(scores, size)
            rows[1, block] = sum_block(scores, lanes)
            rows[2, block] = sum_squares(scores, lanes)


def clipped_sums(tile: RawTile, c: float) -> np.ndarray:
    """Return block sums over `c·s >= 1`: their number, their s and their s²."""
    rows = np.empty((3, num_blocks(tile)))
    _clipped_sums(seen(tile.base), seen(tile.tuned[0]), *root_of(tile), tile.start, c, rows)
    return rows


@compiled
def _drop_and_rescale(base, tuned, out, values, repeat, inner, start, key_low, key_high, c, gamma, rows):
    count, start, repeat, inner = u64(base.size), u64(start), u64(repeat), u64(inner)
    key_low, key_high, c, gamma = u32(key_low), u32(key_high), f32(c), f32(gamma)
    one, whole, like = f32(1), gamma == f32(1), out[0]
    root = np.empty(SIZE, f32)
    magnitudes = np.empty(SIZE, f32)
    distances = np.empty(SIZE, f32)
    lanes = np.empty(LANES, f64)
    held = np.full(2, ANY, u64)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        root_block(values, repeat, inner, start + at, size, root, held)
        first = u32(u32(start + at) + key_low)
        num_kept, num_nonzero, num_clipped = i32(0), i32(0), i32(0)
        for i in range(size):
            b = decoded(base[at + i])
            t = decoded(tuned[at + i])
            delta = t - b
            magnitude = abs(delta)
            keep = c * (root[i] * magnitude)
            clip = keep >= one
            keep = one if clip else keep
            nonzero = delta != f32(0)
            kept = ((f32(word(u32(first + u32(i)), key_high)) < keep * _TWO_32) | clip) & nonzero
            fused = b + gamma * (delta / (keep if kept else one))
            fused = t if (whole & clip) else fused
            stored = encoded(fused if kept else b, like)
            out[at + i] = stored
            magnitudes[i] = magnitude
            distances[i] = abs(decoded(stored) - b)
            num_kept = i32(num_kept + i32(kept))
            num_nonzero = i32(num_nonzero + i32(nonzero))
            num_clipped = i32(num_clipped + i32(clip & nonzero))
        zero_tail(magnitudes, size)
        zero_tail(distances, size)
        block = at // SIZE
        rows[0, block] = num_kept
        rows[1, block] = size - num_nonzero
        rows[2, block] = num_clipped
        rows[3, block] = sum_block(magnitudes, lanes)
        rows[4, block] = sum_block(distances, lanes)
        rows[5, block] = sum_squares(distances, lanes)


def drop_and_rescale(tile: RawTile, out: np.ndarray, c: float, gamma: float) -> np.ndarray:
    """Write `base + γ·δ/q` where kept, else the base, into `out`; return the figures."""
    rows = np.empty((6, num_blocks(tile)))
    _drop_and_rescale(
        seen(tile.base),
        seen(tile.tuned[0]),
        seen_output(out),
        *root_of(tile),
        tile.start,
        tile.keys[0].low,
        tile.keys[0].high,
        c,
        gamma,
        rows,
    )
    return rows
