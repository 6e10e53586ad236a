"""The device kernels of `fusion.methods.adadare`."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...methods import adadare
from ..stand_in import StandIn
from .elements import (
    LANES,
    ROWS,
    added,
    draw,
    figured,
    no_figures,
    nothing,
    number,
    pair,
    root_of,
    row,
    total,
    write_figures,
)
from .launch import DeviceTile, launched


@triton.jit
def _score_sums(base_at, tuned_at, rows_at, num_blocks, count, values_at, repeat, inner, first):
    sums, squares = nothing(), nothing()
    nonzero, largest = tl.zeros((LANES,), tl.int32), tl.zeros((LANES,), tl.float32)
    for k in tl.static_range(ROWS):
        at = row(k)
        here = at < count
        base, tuned = pair(base_at, tuned_at, at, here)
        s = root_of(values_at, repeat, inner, first, at, here) * tl.abs(tuned - base)
        wide = s.to(tl.float64)
        sums, squares = added(k, wide, sums), added(k, wide * wide, squares)
        nonzero += (s > 0).to(tl.int32)
        largest = tl.maximum(largest, s)
    rows_at += tl.program_id(0)
    tl.store(rows_at, total(sums))
    tl.store(rows_at + num_blocks, total(squares))
    tl.store(rows_at + 2 * num_blocks, number(nonzero))
    tl.store(rows_at + 3 * num_blocks, tl.max(largest, axis=0).to(tl.float64))


@triton.jit
def _clipped_sums(base_at, tuned_at, rows_at, num_blocks, count, values_at, repeat, inner, first, c: tl.float32):
    sums, squares, clips = nothing(), nothing(), tl.zeros((LANES,), tl.int32)
    for k in tl.static_range(ROWS):
        at = row(k)
        here = at < count
        base, tuned = pair(base_at, tuned_at, at, here)
        s = root_of(values_at, repeat, inner, first, at, here) * tl.abs(tuned - base)
        clipped = c * s >= 1
        wide = tl.where(clipped, s, 0.0).to(tl.float64)
        sums, squares = added(k, wide, sums), added(k, wide * wide, squares)
        clips += clipped.to(tl.int32)
    rows_at += tl.program_id(0)
    tl.store(rows_at, number(clips))
    tl.store(rows_at + num_blocks, total(sums))
    tl.store(rows_at + 2 * num_blocks, total(squares))


@triton.jit
def _drop_and_rescale(
    base_at, tuned_at, out_at, rows_at, num_blocks, count, values_at, repeat, inner, first,
    start, key_low: tl.int64, key_high: tl.int64, c: tl.float32, gamma: tl.float32,
):  # fmt: skip
    figures = no_figures()
    for k in tl.static_range(ROWS):
        at = row(k)
        here = at < count
        base, tuned = pair(base_at, tuned_at, at, here)
        delta = tuned - base
        keep = c * (root_of(values_at, repeat, inner, first, at, here) * tl.abs(delta))
        clipped = keep >= 1
        keep = tl.where(clipped, 1.0, keep)
        kept = draw(keep, start, at, key_low, key_high) & (delta != 0)
        values = base + gamma * tl.div_rn(delta, tl.where(kept, keep, 1.0))
        values = tl.where(clipped & (gamma == 1), tuned, values)
        values = tl.where(kept, values, base)
        figures = figured(k, figures, out_at, at, here, base, values, delta, kept, clipped)
    write_figures(figures, rows_at, num_blocks)


def score_sums(tile: DeviceTile) -> Any:
    """Return block sums of s, s², the number of non-zero s, and block maxima of s."""
    return launched(_score_sums, tile, None, 4, tile.root)


def clipped_sums(tile: DeviceTile, c: float) -> Any:
    """Return block sums over `c·s >= 1`: their number, their s and their s²."""
    return launched(_clipped_sums, tile, None, 3, (*tile.root, c))


def drop_and_rescale(tile: DeviceTile, out: Any, c: float, gamma: float) -> Any:
    """Write `base + γ·δ/q` where kept, else the base, into `out`; return the figures."""
    key = tile.keys[0]
    return launched(_drop_and_rescale, tile, out, 6, (*tile.root, tile.start, key.low, key.high, c, gamma))


STAND_INS = (
    StandIn(signature=(adadare.score_sums,), kernel=score_sums),
    StandIn(signature=(adadare.clipped_sums,), kernel=clipped_sums),
    StandIn(signature=(adadare.drop_and_rescale,), kernel=drop_and_rescale),
)
