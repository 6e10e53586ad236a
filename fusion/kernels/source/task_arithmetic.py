"""The kernel of `fusion.transforms.scale` for one tuned model."""

from __future__ import annotations

from .blocks import SIZE, figures
from .elements import decoded, encoded, f32, i32, u64


def add_scaled(base, tuned, out, count, scale, magnitudes, distances, lanes, rows, num_blocks):
    """Put `base + scale·δ` into `out`, and the figures into six rows."""
    scale, like = f32(scale), out[0]
    nothing, whole = scale == f32(0), scale == f32(1)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        nonzero_count = i32(0)
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
            nonzero_count = i32(nonzero_count + i32(nonzero))
        kept_count = i32(0) if nothing else nonzero_count
        figures(at, size, kept_count, nonzero_count, i32(0), magnitudes, distances, lanes, rows, num_blocks)
