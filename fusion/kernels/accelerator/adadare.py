"""The device kernels of `fusion.methods.adadare`."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...methods import adadare
from ..stand_in import StandIn
from .elements import BLOCK, block_sum, draw, number, pair, root_of, write
from .launch import DeviceTile, launched


@triton.jit
def _score_sums(base_at, tuned_at, rows_at, num_blocks, count, values_at, repeat, inner, start):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    base, tuned = pair(base_at, tuned_at, at, here)
    s = root_of(values_at, repeat, inner, start, at, here) * tl.abs(tuned - base)
    wide = s.to(tl.float64)
    rows_at += tl.program_id(0)
    tl.store(rows_at, block_sum(wide))
    tl.store(rows_at + num_blocks, block_sum(wide * wide))
    tl.store(rows_at + 2 * num_blocks, number(s > 0))
    tl.store(rows_at + 3 * num_blocks, tl.max(s, axis=0).to(tl.float64))


@triton.jit
def _clipped_sums(base_at, tuned_at, rows_at, num_blocks, count, values_at, repeat, inner, start, c: tl.float32):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    base, tuned = pair(base_at, tuned_at, at, here)
    s = root_of(values_at, repeat, inner, start, at, here) * tl.abs(tuned - base)
    clipped = c * s >= 1
    wide = tl.where(clipped, s, 0.0).to(tl.float64)
    rows_at += tl.program_id(0)
    tl.store(rows_at, number(clipped))
    tl.store(rows_at + num_blocks, block_sum(wide))
    tl.store(rows_at + 2 * num_blocks, block_sum(wide * wide))


@triton.jit
def _drop_and_rescale(
    base_at, tuned_at, out_at, rows_at, num_blocks, count, values_at, repeat, inner, start,
    key_low: tl.int64, key_high: tl.int64, c: tl.float32, gamma: tl.float32,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    base, tuned = pair(base_at, tuned_at, at, here)
    delta = tuned - base
    keep = c * (root_of(values_at, repeat, inner, start, at, here) * tl.abs(delta))
    clipped = keep >= 1
    keep = tl.where(clipped, 1.0, keep)
    kept = draw(keep, start, at, key_low, key_high) & (delta != 0)
    values = base + gamma * tl.div_rn(delta, tl.where(kept, keep, 1.0))
    values = tl.where(clipped & (gamma == 1), tuned, values)
    write(out_at, rows_at, num_blocks, at, here, base, tl.where(kept, values, base), delta, kept, clipped)


def score_sums(tile: DeviceTile) -> Any:
    """Return block sums of s, s², the number of non-zero s, and block maxima of s."""
    return launched(_score_sums, tile, None, 4, (*tile.root, tile.start))


def clipped_sums(tile: DeviceTile, c: float) -> Any:
    """Return block sums over `c·s >= 1`: their number, their s and their s²."""
    return launched(_clipped_sums, tile, None, 3, (*tile.root, tile.start, c))


def drop_and_rescale(tile: DeviceTile, out: Any, c: float, gamma: float) -> Any:
    """Write `base + γ·δ/q` where kept, else the base, into `out`; return the figures."""
    key = tile.keys[0]
    return launched(_drop_and_rescale, tile, out, 6, (*tile.root, tile.start, key.low, key.high, c, gamma))


STAND_INS = (
    StandIn(signature=(adadare.score_sums,), kernel=score_sums),
    StandIn(signature=(adadare.clipped_sums,), kernel=clipped_sums),
    StandIn(signature=(adadare.drop_and_rescale,), kernel=drop_and_rescale),
)
