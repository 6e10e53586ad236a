"""What device kernels do with each block of 4,096 elements; `kernels.source` has the same for CPUs.

Nothing here may round otherwise than the definitions: kernels are launched without fused multiply-add, quotients are
`div_rn`, and bfloat16 is taken apart and put together as whole numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...arithmetic import random, sums
from ...arithmetic.tile import TWO_32

BLOCK = tl.constexpr(sums.BLOCK)
HALVINGS = tl.constexpr(sums.BLOCK.bit_length() - 1)
_M0, _M1 = (tl.constexpr(multiplier) for multiplier in random.MULTIPLIERS)
_S0, _S1, _S2 = (tl.constexpr(shift) for shift in random.SHIFTS)
_TWO_32 = tl.constexpr(TWO_32)


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
def root_of(values_at, repeat, inner, start, at, here):
    """Return `sqrt(H)` of elements: of the layout that `arithmetic.per_element` has."""
    index = start + at
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
def block_sum(values):
    """Return the sum of a block in float64: halves are added until one number is left."""
    x = values.to(tl.float64)
    for k in tl.static_range(HALVINGS):
        x = tl.sum(tl.reshape(x, (2, BLOCK >> (k + 1))), axis=0)
    return tl.sum(x, axis=0)


@triton.jit
def number(mask):
    """Return how many elements of a block are marked."""
    return tl.sum(mask.to(tl.int32), axis=0).to(tl.float64)


@triton.jit
def write(out_at, rows_at, num_blocks, at, here, base, values, delta, kept, clipped):
    """Store fused elements, and the figures of `arithmetic.passes.measure` in six rows."""
    stored = encoded(values, out_at.dtype.element_ty)
    tl.store(out_at + at, stored, mask=here)
    moved = tl.where(here, tl.abs(decoded(stored) - base), 0.0)
    nonzero = delta != 0
    rows_at += tl.program_id(0)
    tl.store(rows_at, number(kept & nonzero))
    tl.store(rows_at + num_blocks, number(here & ~nonzero))
    tl.store(rows_at + 2 * num_blocks, number(clipped & nonzero))
    tl.store(rows_at + 3 * num_blocks, block_sum(tl.abs(delta)))
    tl.store(rows_at + 4 * num_blocks, block_sum(moved))
    wide = moved.to(tl.float64)
    tl.store(rows_at + 5 * num_blocks, block_sum(wide * wide))
