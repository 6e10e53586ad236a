"""The kernel of `fusion.methods.dare` for one tuned model."""

from __future__ import annotations

from .blocks import SIZE, figures, last_kept, word
from .elements import decoded, encoded, f32, i32, u32, u64


def drop_and_rescale(
    base, tuned, out, count, start, key_low, key_high, keep, factor, magnitudes, distances, lanes, rows, num_blocks
):
    """Put `base + factor·δ` where an element is kept, else the base, into `out`, and the figures into six rows."""
    key_high, keep, factor = u32(key_high), f32(keep), f32(factor)
    last, like = last_kept(keep), out[0]
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        first = u32(u32(start + at) + u32(key_low))
        kept_count, nonzero_count = i32(0), i32(0)
        for i in range(size):
            b = decoded(base[at + i])
            delta = decoded(tuned[at + i]) - b
            nonzero = delta != f32(0)
            kept = (word(u32(first + u32(i)), key_high) <= last) & nonzero
            fused = b + factor * delta
            stored = encoded(fused if kept else b, like)
            out[at + i] = stored
            magnitudes[i] = abs(delta)
            distances[i] = abs(decoded(stored) - b)
            kept_count = i32(kept_count + i32(kept))
            nonzero_count = i32(nonzero_count + i32(nonzero))
        figures(at, size, kept_count, nonzero_count, i32(0), magnitudes, distances, lanes, rows, num_blocks)


def keep_tuned(base, tuned, out, count, start, key_low, key_high, keep):
    """Put the tuned elements that `drop_and_rescale` keeps into `out`, and the base's elsewhere."""
    first, key_high, last = u32(u32(start) + u32(key_low)), u32(key_high), last_kept(f32(keep))
    for i in range(u64(0), count):
        nonzero = decoded(tuned[i]) - decoded(base[i]) != f32(0)
        out[i] = tuned[i] if (word(u32(first + u32(i)), key_high) <= last) & nonzero else base[i]
