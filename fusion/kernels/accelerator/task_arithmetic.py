"""The device kernel of `fusion.transforms.scale` for one tuned model."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...transforms import scale as definitions
from ..stand_in import StandIn
from .elements import ROWS, figured, no_figures, pair, row, write_figures
from .launch import DeviceTile, launched


@triton.jit
def _add_scaled(base_at, tuned_at, out_at, rows_at, num_blocks, count, scale: tl.float32):
    figures = no_figures()
    for k in tl.static_range(ROWS):
        at = row(k)
        here = at < count
        base, tuned = pair(base_at, tuned_at, at, here)
        delta = tuned - base
        values = tl.where((delta == 0) | (scale == 0), base, base + scale * delta)
        values = tl.where(scale == 1, tuned, values)
        kept = (delta != 0) & (scale != 0)
        figures = figured(k, figures, out_at, at, here, base, values, delta, kept, kept & (at < 0))
    write_figures(figures, rows_at, num_blocks)


def add_scaled(tile: DeviceTile, out: Any, scale: float) -> Any:
    """Write `base + scale·δ` into `out`; return the figures."""
    return launched(_add_scaled, tile, out, 6, (scale,))


STAND_INS = (StandIn(signature=(definitions.add_scaled,), kernel=add_scaled),)
