"""The kernel of a trim of one model by saliency."""

from __future__ import annotations

from .blocks import NOWHERE, SIZE, end_of, figures, root_block
from .elements import decoded, encoded, f32, i32, u64


def keep_salient(
    base, tuned, out, count, values, repeat, inner, start, least, least_place, scale,
    root, magnitudes, distances, lanes, rows, num_blocks,
):  # fmt: skip
    """Put `base + scale·δ` where the score is within the cut, else the base, into `out`, and the figures into six rows.

    Args:
        least_place: The first place that a score equal to `least` is not selected at.
    """
    least, scale, whole, like = f32(least), f32(scale), scale == 1, out[0]
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        held = root_block(values, repeat, inner, start + at, size, root, held)
        end = end_of(least_place, start + at, size)
        kept_count, nonzero_count = i32(0), i32(0)
        for i in range(size):
            b = decoded(base[at + i])
            t = decoded(tuned[at + i])
            delta = t - b
            magnitude = abs(delta)
            nonzero = delta != f32(0)
            s = root[i] * magnitude
            kept = ((s > least) | ((s == least) & (i32(i) < end))) & nonzero
            fused = t if whole else b + scale * delta
            stored = encoded(fused if kept else b, like)
            out[at + i] = stored
            magnitudes[i] = magnitude
            distances[i] = abs(decoded(stored) - b)
            kept_count = i32(kept_count + i32(kept))
            nonzero_count = i32(nonzero_count + i32(nonzero))
        figures(at, size, kept_count, nonzero_count, i32(0), magnitudes, distances, lanes, rows, num_blocks)
