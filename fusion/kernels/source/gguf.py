"""The kernels that decode blocks of GGUF, llama.cpp's format: the bits of the `gguf` package's `dequantize`.

Each takes where to put elements, the bytes of blocks, and how many blocks there are. Products and sums are separate
float32 operations, as NumPy's.
"""

from __future__ import annotations

import numpy as np

from .compiler import inlined
from .elements import decoded, encoded, f32, i16, u16, u32, u64

HALF, SMALL, LARGE = u64(16), u64(32), u64(256)
# What the sixteen codes of IQ4 mean: levels that lie closer together around zero.
UNEVEN = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


@inlined
def _half(data, at):
    """Return the float16 whose two bytes lie at `at`."""
    return decoded(i16(u16(u16(data[at]) | u16(u16(data[at + u64(1)]) << u16(8)))))


@inlined
def _signed(byte):
    """Return a byte as the int8 that it is, in float32."""
    return f32(u32(byte)) - f32(u32(u32(byte) >> u32(7)) * u32(256))


def q4_0(out, data, count):
    """16 levels from −8 on, times a scale for 32."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(18), block * SMALL
        d = _half(data, at)
        for i in range(HALF):
            byte = u32(data[at + u64(2) + i])
            out[to + i] = encoded(d * (f32(u32(byte & u32(15))) - f32(8)), like)
            out[to + HALF + i] = encoded(d * (f32(u32(byte >> u32(4))) - f32(8)), like)


def q4_1(out, data, count):
    """16 levels times a scale for 32, plus a minimum."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(20), block * SMALL
        d, m = _half(data, at), _half(data, at + u64(2))
        for i in range(HALF):
            byte = u32(data[at + u64(4) + i])
            out[to + i] = encoded(d * f32(u32(byte & u32(15))) + m, like)
            out[to + HALF + i] = encoded(d * f32(u32(byte >> u32(4))) + m, like)


@inlined
def _word(data, at):
    return u32(
        u32(data[at])
        | u32(u32(data[at + u64(1)]) << u32(8))
        | u32(u32(data[at + u64(2)]) << u32(16))
        | u32(u32(data[at + u64(3)]) << u32(24))
    )


def q5_0(out, data, count):
    """32 levels from −16 on, the highest bit of each apart, times a scale for 32."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(22), block * SMALL
        d, high = _half(data, at), _word(data, at + u64(2))
        for i in range(HALF):
            byte, place = u32(data[at + u64(6) + i]), u32(i)
            low = u32(u32(byte & u32(15)) | u32(u32(u32(high >> place) & u32(1)) << u32(4)))
            up = u32(u32(byte >> u32(4)) | u32(u32(u32(high >> u32(place + u32(16))) & u32(1)) << u32(4)))
            out[to + i] = encoded(d * (f32(low) - f32(16)), like)
            out[to + HALF + i] = encoded(d * (f32(up) - f32(16)), like)


def q5_1(out, data, count):
    """32 levels, the highest bit of each apart, times a scale for 32, plus a minimum."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(24), block * SMALL
        d, m, high = _half(data, at), _half(data, at + u64(2)), _word(data, at + u64(4))
        for i in range(HALF):
            byte, place = u32(data[at + u64(8) + i]), u32(i)
            low = u32(u32(byte & u32(15)) | u32(u32(u32(high >> place) & u32(1)) << u32(4)))
            up = u32(u32(byte >> u32(4)) | u32(u32(u32(high >> u32(place + u32(16))) & u32(1)) << u32(4)))
            out[to + i] = encoded(d * f32(low) + m, like)
            out[to + HALF + i] = encoded(d * f32(up) + m, like)


def q8_0(out, data, count):
    """Whole numbers of 8 bits times a scale for 32."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(34), block * SMALL
        d = _half(data, at)
        for i in range(SMALL):
            out[to + i] = encoded(_signed(data[at + u64(2) + i]) * d, like)


def q2_k(out, data, count):
    """4 levels, with a scale and a minimum of 4 bits each for 16, and a scale of both for 256."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(84), block * LARGE
        d, least = _half(data, at + u64(80)), _half(data, at + u64(82))
        for group in range(u64(16)):
            both = u32(data[at + group])
            dl, ml = d * f32(u32(both & u32(15))), least * f32(u32(both >> u32(4)))
            # 128 elements are four times 32 that lie in the same bytes, two bits higher each time.
            shift = u32(u32(u32(group) >> u32(1)) & u32(3)) << u32(1)
            first = at + u64(16) + (group >> u64(3)) * SMALL + (group & u64(1)) * HALF
            for i in range(HALF):
                level = u32(u32(u32(data[first + i]) >> u32(shift)) & u32(3))
                out[to + group * HALF + i] = encoded(dl * f32(level) - ml, like)


def q3_k(out, data, count):
    """8 levels from −4 on, the highest bit of each apart, with a signed scale of 6 bits for 16, and one for 256."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(110), block * LARGE
        d = _half(data, at + u64(108))
        for group in range(u64(16)):
            low = u32(u32(data[at + u64(96) + (group & u64(7))]) >> u32(u32(u32(group) >> u32(3)) << u32(2)))
            high = u32(u32(data[at + u64(104) + (group & u64(3))]) >> u32(u32(u32(group) >> u32(2)) << u32(1)))
            scale = u32(u32(low & u32(15)) | u32(u32(high & u32(3)) << u32(4)))
            dl = d * (f32(scale) - f32(32))
            shift = u32(u32(u32(u32(group) >> u32(1)) & u32(3)) << u32(1))
            bit = u32(u32(group) >> u32(1))
            inside = (group & u64(1)) * HALF
            first = at + u64(32) + (group >> u64(3)) * SMALL + inside
            for i in range(HALF):
                level = u32(u32(u32(data[first + i]) >> shift) & u32(3))
                mask = u32(u32(u32(data[at + inside + i]) >> bit) & u32(1))
                value = f32(u32(level | u32(mask << u32(2)))) - f32(4)
                out[to + group * HALF + i] = encoded(dl * value, like)


@inlined
def _scale_and_least(data, at, group):
    """Return the scale and the minimum of 6 bits of one of eight groups, from their twelve bytes at `at`."""
    if group < u64(4):
        return u32(u32(data[at + group]) & u32(63)), u32(u32(data[at + u64(4) + group]) & u32(63))
    k = group - u64(4)
    both = u32(data[at + u64(8) + k])
    scale = u32(u32(both & u32(15)) | u32(u32(u32(data[at + k]) >> u32(2)) & u32(0x30)))
    least = u32(u32(both >> u32(4)) | u32(u32(u32(data[at + u64(4) + k]) >> u32(2)) & u32(0x30)))
    return scale, least


@inlined
def _scaled(data, at, group, d, least):
    """Return the same, times the scales of both."""
    scale, own_least = _scale_and_least(data, at, group)
    return d * f32(scale), least * f32(own_least)


def q4_k(out, data, count):
    """16 levels, with a scale and a minimum of 6 bits each for 32, and a scale of both for 256."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(144), block * LARGE
        d, least = _half(data, at), _half(data, at + u64(2))
        for pair in range(u64(4)):
            dl, ml = _scaled(data, at + u64(4), u64(2) * pair, d, least)
            dh, mh = _scaled(data, at + u64(4), u64(2) * pair + u64(1), d, least)
            first, put = at + u64(16) + pair * SMALL, to + pair * u64(64)
            for i in range(SMALL):
                byte = u32(data[first + i])
                out[put + i] = encoded(dl * f32(u32(byte & u32(15))) - ml, like)
                out[put + SMALL + i] = encoded(dh * f32(u32(byte >> u32(4))) - mh, like)


def q5_k(out, data, count):
    """As `q4_k`, of 32 levels, the highest bit of each apart."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(176), block * LARGE
        d, least = _half(data, at), _half(data, at + u64(2))
        for pair in range(u64(4)):
            dl, ml = _scaled(data, at + u64(4), u64(2) * pair, d, least)
            dh, mh = _scaled(data, at + u64(4), u64(2) * pair + u64(1), d, least)
            first, put, bit = at + u64(48) + pair * SMALL, to + pair * u64(64), u32(u32(pair) << u32(1))
            for i in range(SMALL):
                byte, high = u32(data[first + i]), u32(u32(data[at + u64(16) + i]) >> bit)
                low = u32(u32(byte & u32(15)) | u32(u32(high & u32(1)) << u32(4)))
                up = u32(u32(byte >> u32(4)) | u32(u32(high & u32(2)) << u32(3)))
                out[put + i] = encoded(dl * f32(low) - ml, like)
                out[put + SMALL + i] = encoded(dh * f32(up) - mh, like)


def q6_k(out, data, count):
    """64 levels from −32 on, the two highest bits of each apart, with an int8 scale for 16, and one for 256."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(210), block * LARGE
        d = _half(data, at + u64(208))
        for group in range(u64(16)):
            dl = d * _signed(data[at + u64(192) + group])
            # Of 128 elements 64 bytes have four bits each, the low halves first; 32 bytes have two bits each.
            half, row = group >> u64(3), (group >> u64(1)) & u64(3)
            inside = (group & u64(1)) * HALF
            first = at + half * u64(64) + (row & u64(1)) * SMALL + inside
            beyond = at + u64(128) + half * SMALL + inside
            shift, above = u32(u32(row >> u64(1)) << u32(2)), u32(u32(row) << u32(1))
            for i in range(HALF):
                low = u32(u32(u32(data[first + i]) >> shift) & u32(15))
                high = u32(u32(u32(data[beyond + i]) >> above) & u32(3))
                out[to + group * HALF + i] = encoded(dl * (f32(u32(low | u32(high << u32(4)))) - f32(32)), like)


@inlined
def _uneven(out, to, data, at, scale, like):
    """Put 32 elements of 16 bytes, the low halves first."""
    for i in range(HALF):
        byte = u32(data[at + i])
        out[to + i] = encoded(scale * UNEVEN[u64(byte & u32(15))], like)
        out[to + HALF + i] = encoded(scale * UNEVEN[u64(byte >> u32(4))], like)


def iq4_nl(out, data, count):
    """16 uneven levels times a scale for 32."""
    like = out[0]
    for block in range(u64(0), count):
        at = block * u64(18)
        _uneven(out, block * SMALL, data, at + u64(2), _half(data, at), like)


def iq4_xs(out, data, count):
    """16 uneven levels, with a scale of 6 bits from −32 on for 32, and one for 256."""
    like = out[0]
    for block in range(u64(0), count):
        at, to = block * u64(136), block * LARGE
        d = _half(data, at)
        upper = u32(u32(data[at + u64(2)]) | u32(u32(data[at + u64(3)]) << u32(8)))
        for group in range(u64(8)):
            low = u32(u32(data[at + u64(4) + (group >> u64(1))]) >> u32(u32(u32(group) & u32(1)) << u32(2)))
            high = u32(u32(upper >> u32(u32(group) << u32(1))) & u32(3))
            scale = d * (f32(u32(u32(low & u32(15)) | u32(high << u32(4)))) - f32(32))
            _uneven(out, to + group * SMALL, data, at + u64(8) + group * HALF, scale, like)
