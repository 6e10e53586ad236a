"""What device kernels do with each block of 4,096 elements; `kernels.source` has the same for CPUs.

A block is sixteen rows of 256 lanes. A program goes through the rows in the order in which halves are added, so that
only the last eight halvings, of lanes, leave the registers.

Nothing here may round otherwise than the definitions: kernels are launched without fused multiply-add, quotients are
`div_rn`, and bfloat16 is taken apart and put together as whole numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...arithmetic import random, sums
from ...arithmetic.tile import TWO_32

BLOCK = tl.constexpr(sums.BLOCK)
ROWS = tl.constexpr(16)
LANES = tl.constexpr(sums.BLOCK // 16)
HALVINGS = tl.constexpr((sums.BLOCK // 16).bit_length() - 1)
_M0, _M1 = (tl.constexpr(multiplier) for multiplier in random.MULTIPLIERS)
_S0, _S1, _S2 = (tl.constexpr(shift) for shift in random.SHIFTS)
_TWO_32 = tl.constexpr(TWO_32)


@triton.jit
def row(k: tl.constexpr):
    """Return where in the tile the k-th row begins, of those in the order in which they are added: bits reversed."""
    place: tl.constexpr = ((k & 1) << 3) | ((k & 2) << 1) | ((k & 4) >> 1) | ((k & 8) >> 3)
    return tl.program_id(0).to(tl.int64) * BLOCK + place * LANES + tl.arange(0, LANES)


@triton.jit
def decoded(stored):
    """Return stored elements as float32: uint16 is bfloat16."""
    if stored.dtype == tl.uint16:
        return (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return stored.to(tl.float32)


@triton.jit
def encoded(values, like: tl.constexpr):
    """Return float32 as it is stored: rounded to the nearest, ties to even."""
    if like == tl.uint16:
        bits = values.to(tl.uint32, bitcast=True)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        return tl.where(values == values, rounded, 0x7FC0).to(tl.uint16)
    return values.to(like)


@triton.jit
def pair(base_at, tuned_at, at, here):
    """Return base and tuned elements as float32; zeros beyond the last."""
    return (
        decoded(tl.load(base_at + at, mask=here, other=0)),
        decoded(tl.load(tuned_at + at, mask=here, other=0)),
    )


@triton.jit
def root_of(values_at, repeat, inner, first, at, here):
    """Return `sqrt(H)` of elements: of the layout that `arithmetic.per_element` has."""
    index = first + at
    place = index // (repeat * inner) * inner + index % inner
    return tl.load(values_at + place, mask=here, other=0)


@triton.jit
def _mixed(x):
    x = x ^ (x >> _S0)
    x = x * tl.full((), _M0, tl.uint32)
    x = x ^ (x >> _S1)
    x = x * tl.full((), _M1, tl.uint32)
    return x ^ (x >> _S2)


@triton.jit
def draw(keep, start, at, key_low, key_high):
    """Return which elements are kept, each with its own probability."""
    index = (start + at).to(tl.uint32) + key_low.to(tl.uint32)
    word = _mixed(_mixed(index) ^ key_high.to(tl.uint32))
    return (word.to(tl.float32) < keep * _TWO_32) | (keep >= 1)


@triton.jit
def nothing():
    """Return what a sum over rows begins with."""
    zero = tl.zeros((LANES,), tl.float64)
    return zero, zero, zero, zero


@triton.jit
def added(k: tl.constexpr, values, held):
    """Add the k-th row, float64: a sum waits until its other half is there. The last one held ends as the total."""
    a, b, c, d = held
    if k % 2 == 0:
        a = values
    else:
        values = a + values
        if k // 2 % 2 == 0:
            b = values
        else:
            values = b + values
            if k // 4 % 2 == 0:
                c = values
            else:
                values = c + values
                d = values if k // 8 % 2 == 0 else d + values
    return a, b, c, d


@triton.jit
def total(held):
    """Return the sum of a block: halves of the lanes are added until one number is left."""
    _, _, _, x = held
    for k in tl.static_range(HALVINGS):
        x = tl.sum(tl.reshape(x, (2, LANES >> (k + 1))), axis=0)
    return tl.sum(x, axis=0)


@triton.jit
def number(counts):
    """Return the sum of whole numbers over the lanes."""
    return tl.sum(counts, axis=0).to(tl.float64)


@triton.jit
def no_figures():
    """Return what `figured` begins with."""
    count = tl.zeros((LANES,), tl.int32)
    return count, count, count, nothing(), nothing(), nothing()


@triton.jit
def figured(k: tl.constexpr, figures, out_at, at, here, base, values, delta, kept, clipped):
    """Store the fused elements of the k-th row; return the figures of `arithmetic.passes.measure` with it."""
    kept_count, zero_count, clipped_count, magnitude, distance, squares = figures
    stored = encoded(values, out_at.dtype.element_ty)
    tl.store(out_at + at, stored, mask=here)
    moved = tl.where(here, tl.abs(decoded(stored) - base), 0.0).to(tl.float64)
    nonzero = delta != 0
    return (
        kept_count + (kept & nonzero).to(tl.int32),
        zero_count + (here & (delta == 0)).to(tl.int32),
        clipped_count + (clipped & nonzero).to(tl.int32),
        added(k, tl.abs(delta).to(tl.float64), magnitude),
        added(k, moved, distance),
        added(k, moved * moved, squares),
    )


@triton.jit
def write_figures(figures, rows_at, num_blocks):
    """Store a block's figures in six rows."""
    kept_count, zero_count, clipped_count, magnitude, distance, squares = figures
    rows_at += tl.program_id(0)
    tl.store(rows_at, number(kept_count))
    tl.store(rows_at + num_blocks, number(zero_count))
    tl.store(rows_at + 2 * num_blocks, number(clipped_count))
    tl.store(rows_at + 3 * num_blocks, total(magnitude))
    tl.store(rows_at + 4 * num_blocks, total(distance))
    tl.store(rows_at + 5 * num_blocks, total(squares))
