"""The device kernel of `fusion.methods.dare` for one tuned model."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...methods import dare
from ..stand_in import StandIn
from .elements import ROWS, draw, figured, no_figures, pair, row, write_figures
from .launch import DeviceTile, launched


@triton.jit
def _drop_and_rescale(
    base_at, tuned_at, out_at, rows_at, num_blocks, count, start, key_low: tl.int64, key_high: tl.int64,
    keep: tl.float32, factor: tl.float32,
):  # fmt: skip
    figures = no_figures()
    for k in tl.static_range(ROWS):
        at = row(k)
        here = at < count
        base, tuned = pair(base_at, tuned_at, at, here)
        delta = tuned - base
        kept = draw(keep, start, at, key_low, key_high) & (delta != 0)
        values = tl.where(kept, base + factor * delta, base)
        figures = figured(k, figures, out_at, at, here, base, values, delta, kept, kept & (at < 0))
    write_figures(figures, rows_at, num_blocks)


def drop_and_rescale(tile: DeviceTile, out: Any, keep: float, scale: float) -> Any:
    """Write `base + scale/keep·δ` where kept, else the base, into `out`; return the figures."""
    key = tile.keys[0]
    return launched(_drop_and_rescale, tile, out, 6, (tile.start, key.low, key.high, keep, scale / keep))


STAND_INS = (StandIn(signature=(dare.drop_and_rescale,), kernel=drop_and_rescale),)
