"""What kernels do for each block of 4,096 elements: `sqrt(H)`, uniform words, sums in the order of `fusion.sums`."""

from __future__ import annotations

from ...arithmetic.random import MULTIPLIERS, SHIFTS
from ...arithmetic.sums import BLOCK
from ...arithmetic.tile import TWO_32
from .compiler import inlined
from .elements import f32, f64, i32, u32, u64

assert BLOCK == 4096, "the unrolled sums below are for this size"
SIZE = u64(BLOCK)
LANES = u64(256)  # a block is summed as 16 rows of 256 lanes
NOWHERE = u64(0xFFFFFFFFFFFFFFFF)

_TWO_32 = f32(TWO_32)
_M0, _M1 = (u32(m) for m in MULTIPLIERS)
_S0, _S1, _S2 = (u32(s) for s in SHIFTS)


@inlined
def _mixed(x):
    x = u32(x ^ u32(x >> _S0))
    x = u32(x * _M0)
    x = u32(x ^ u32(x >> _S1))
    x = u32(x * _M1)
    return u32(x ^ u32(x >> _S2))


@inlined
def word(index, key_high):
    """Return the uniform word of an element: `index` is its flat index plus the key's low word."""
    return _mixed(u32(_mixed(index) ^ key_high))


@inlined
def last_kept(keep):
    """Return the largest word that is kept with probability `keep > 0`: a comparison of integers for one of floats.

    Kept are words that, as float32, are below `keep·2³²`; all of them where `keep` is 1.
    """
    threshold = keep * _TWO_32
    low, high = u64(0), u64(0xFFFFFFFF)  # the first is kept, which is not known of the last
    while low < high:
        middle = (low + high + u64(1)) >> u64(1)
        if f32(u32(middle)) < threshold or keep >= f32(1):
            low = middle
        else:
            high = middle - u64(1)
    return u32(low)


@inlined
def _fill_root(values, repeat, inner, at, count, buffer):
    period = repeat * inner
    outer = at // period
    into = at - outer * period
    skipped = into % inner
    left = period - into  # of this outer run
    i = u64(0)
    while i < count:
        length = min(inner - skipped, count - i)
        source = outer * inner + skipped
        for k in range(length):
            buffer[i + k] = values[source + k]
        i += length
        left -= length
        skipped = u64(0)
        if left == 0:
            outer += u64(1)
            left = period


@inlined
def root_block(values, repeat, inner, at, count, buffer, held):
    """Put `sqrt(H)` of elements `at … at + count − 1` into `buffer`, unless `held` says that it has them.

    Args:
        held: Outer run and place in it that the buffer was last filled from; (`NOWHERE`, any) at first.

    Returns:
        `held` for the next block.
    """
    period = repeat * inner
    outer = at // period
    skipped = (at - outer * period) % inner
    within = (at + count - u64(1)) // period == outer
    if within and held[0] == outer and held[1] == skipped:
        return held
    _fill_root(values, repeat, inner, at, count, buffer)
    return (outer if within and count == SIZE else NOWHERE), skipped


@inlined
def end_of(place, first, size):
    """Return the first of a block's elements that lies at `place` or beyond; the block begins at `first`."""
    return i32(0) if place <= first else i32(min(place - first, size))


@inlined
def zero_tail(buffer, count):
    """Zero what a last, partial block leaves of a buffer."""
    for i in range(count, SIZE):
        buffer[i] = f32(0)


@inlined
def _sum_lanes(lanes):
    for i in range(u64(128)):
        lanes[i] += lanes[i + u64(128)]
    for i in range(u64(64)):
        lanes[i] += lanes[i + u64(64)]
    for i in range(u64(32)):
        lanes[i] += lanes[i + u64(32)]
    for i in range(u64(16)):
        lanes[i] += lanes[i + u64(16)]
    for i in range(u64(8)):
        lanes[i] += lanes[i + u64(8)]
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))


@inlined
def _four(x, i):
    return (f64(x[i]) + f64(x[i + u64(2048)])) + (f64(x[i + u64(1024)]) + f64(x[i + u64(3072)]))


@inlined
def sum_block(x, lanes):
    """Return the sum of a block: halves are added until one number is left, in float64.

    The first four halvings are done in registers. `lanes` is a scratch array of 512 float64, half of it used here.
    """
    for j in range(LANES):
        lanes[j] = (_four(x, j) + _four(x, j + u64(512))) + (_four(x, j + u64(256)) + _four(x, j + u64(768)))
    return _sum_lanes(lanes)


@inlined
def _four_and_squares(x, i):
    a, b, c, d = f64(x[i]), f64(x[i + u64(2048)]), f64(x[i + u64(1024)]), f64(x[i + u64(3072)])
    return (a + b) + (c + d), (a * a + b * b) + (c * c + d * d)


@inlined
def sum_and_squares(x, lanes):
    """Return the sum of a block, and that of its squares, squared in float64."""
    for j in range(LANES):
        first, first_squares = _four_and_squares(x, j)
        second, second_squares = _four_and_squares(x, j + u64(512))
        third, third_squares = _four_and_squares(x, j + u64(256))
        fourth, fourth_squares = _four_and_squares(x, j + u64(768))
        lanes[j] = (first + second) + (third + fourth)
        lanes[j + LANES] = (first_squares + second_squares) + (third_squares + fourth_squares)
    total = _sum_lanes(lanes)
    for j in range(LANES):
        lanes[j] = lanes[j + LANES]
    return total, _sum_lanes(lanes)


@inlined
def figures(at, size, kept, nonzero, clipped, magnitudes, distances, lanes, rows, num_blocks):
    """Put what `methods.method.measure` returns of the block at element `at` into its six rows."""
    zero_tail(magnitudes, size)
    zero_tail(distances, size)
    block = at // SIZE
    rows[block] = kept
    rows[num_blocks + block] = size - u64(nonzero)
    rows[u64(2) * num_blocks + block] = clipped
    rows[u64(3) * num_blocks + block] = sum_block(magnitudes, lanes)
    rows[u64(4) * num_blocks + block], rows[u64(5) * num_blocks + block] = sum_and_squares(distances, lanes)
