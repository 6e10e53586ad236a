"""The kernels of `fusion.methods.adadare`."""

from __future__ import annotations

from ...arithmetic.tile import TWO_32
from .blocks import NOWHERE, SIZE, figures, root_block, sum_and_squares, word, zero_tail
from .elements import bits_of, decoded, encoded, f32, f64, float_of, i32, u32, u64

_TWO_32 = f32(TWO_32)


def score_sums(base, tuned, count, values, repeat, inner, start, root, scores, lanes, rows, num_blocks):
    """Put block sums of s, of s² and of the number of non-zero s, and block maxima of s, into four rows."""
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        held = root_block(values, repeat, inner, start + at, size, root, held)
        nonzero = i32(0)
        largest = u32(0)  # the bits of a float32 that is not negative are ordered as it is, and NaN is on top
        for i in range(size):
            s = root[i] * abs(decoded(tuned[at + i]) - decoded(base[at + i]))
            scores[i] = s
            nonzero = i32(nonzero + i32(s > f32(0)))
            largest = max(largest, bits_of(s))
        zero_tail(scores, size)
        block = at // SIZE
        rows[block], rows[num_blocks + block] = sum_and_squares(scores, lanes)
        rows[u64(2) * num_blocks + block] = nonzero
        rows[u64(3) * num_blocks + block] = float_of(largest)


def clipped_sums(base, tuned, count, values, repeat, inner, start, c, root, scores, lanes, rows, num_blocks):
    """Put block sums over `c·s >= 1`, of their number, their s and their s², into three rows."""
    c = f32(c)
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        held = root_block(values, repeat, inner, start + at, size, root, held)
        clipped = i32(0)
        for i in range(size):
            s = root[i] * abs(decoded(tuned[at + i]) - decoded(base[at + i]))
            clip = c * s >= f32(1)
            scores[i] = s if clip else f32(0)
            clipped = i32(clipped + i32(clip))
        block = at // SIZE
        total, squares = f64(0), f64(0)
        if clipped:
            zero_tail(scores, size)
            total, squares = sum_and_squares(scores, lanes)
        rows[block] = clipped
        rows[num_blocks + block] = total
        rows[u64(2) * num_blocks + block] = squares


def drop_and_rescale(
    base, tuned, out, count, values, repeat, inner, start, key_low, key_high, c, gamma,
    root, magnitudes, distances, lanes, rows, num_blocks,
):  # fmt: skip
    """Put `base + γ·δ/q` where an element is kept, else the base, into `out`, and the figures into six rows."""
    key_low, key_high, c, gamma = u32(key_low), u32(key_high), f32(c), f32(gamma)
    one, whole, like = f32(1), gamma == f32(1), out[0]
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        held = root_block(values, repeat, inner, start + at, size, root, held)
        first = u32(u32(start + at) + key_low)
        kept_count, nonzero_count, clipped_count = i32(0), i32(0), i32(0)
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
            kept_count = i32(kept_count + i32(kept))
            nonzero_count = i32(nonzero_count + i32(nonzero))
            clipped_count = i32(clipped_count + i32(clip & nonzero))
        figures(at, size, kept_count, nonzero_count, clipped_count, magnitudes, distances, lanes, rows, num_blocks)


def keep_tuned(base, tuned, out, count, values, repeat, inner, start, key_low, key_high, c, root):
    """Put the tuned elements that `drop_and_rescale` keeps into `out`, and the base's elsewhere."""
    key_low, key_high, c = u32(key_low), u32(key_high), f32(c)
    one = f32(1)
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        held = root_block(values, repeat, inner, start + at, size, root, held)
        first = u32(u32(start + at) + key_low)
        for i in range(size):
            delta = decoded(tuned[at + i]) - decoded(base[at + i])
            keep = c * (root[i] * abs(delta))
            kept = (f32(word(u32(first + u32(i)), key_high)) < keep * _TWO_32) | (keep >= one)
            out[at + i] = tuned[at + i] if kept & (delta != f32(0)) else base[at + i]
