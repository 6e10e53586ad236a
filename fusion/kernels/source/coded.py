"""The kernels that decode small codes with scales: whole bytes, halves of bytes, and halves that lie across the rows.

An element is `(table[code] − zero) · scale · times` in float32, rounded to the dtype of `out`. Products and differences
are separate operations, as NumPy's. `wide` is memory for a row in float32: looking up is done element by element, and
rounding, which costs more, by vectors.

Rows have as many `columns`. Scales and zeros are float32, (blocks of rows, `groups`): row r is in the block
`(skip + r) / row_block`, and column c in the group `c / width`, or `numbers[c]` where `width` is 0.
"""

from __future__ import annotations

from .compiler import inlined
from .elements import decoded, encoded, f32, u8, u32, u64

ONE, TWO, HALF = u64(1), u64(2), u64(4)
GROUP = u64(32)  # inputs of an expert that share an exponent
AT_ONCE = u64(16)  # outputs of an expert that are decoded together: a line of the cache has several inputs of each


@inlined
def _half(byte, place):
    """Return four bits of a byte, from the bit `place` on."""
    return u64(u32(u32(byte) >> u32(place)) & u32(15))


@inlined
def _rounded(out, to, wide, columns):
    like = out[0]
    for column in range(u64(0), columns):
        out[to + column] = encoded(wide[column], like)


def wholes(
    out, wide, codes, table, scales, zeros, numbers, rows, columns, stride, skip, row_block, groups, width, times
):
    """A byte is a code; a row of codes begins every `stride` bytes."""
    factor = f32(times)
    for row in range(u64(0), rows):
        at, first = row * stride, (skip + row) // row_block * groups
        if width == u64(0):
            for column in range(u64(0), columns):
                group = first + u64(numbers[column])
                wide[column] = (table[u64(codes[at + column])] - zeros[group]) * scales[group] * factor
        else:
            for group in range(u64(0), groups):
                begin, zero, scale = group * width, zeros[first + group], scales[first + group]
                for column in range(begin, min(begin + width, columns)):
                    wide[column] = (table[u64(codes[at + column])] - zero) * scale * factor
        _rounded(out, row * columns, wide, columns)


def halves(
    out, wide, codes, table, scales, zeros, numbers, rows, columns, stride, skip, row_block, groups, width, high
):
    """A byte is two codes, the lower half first; or the upper one, where `high` is 4 instead of 0."""
    low = HALF - high
    for row in range(u64(0), rows):
        at, first = row * stride, (skip + row) // row_block * groups
        if width == u64(0) or width % TWO != u64(0):
            for column in range(u64(0), columns):
                group = first + (u64(numbers[column]) if width == u64(0) else column // width)
                place = low if column % TWO else high
                wide[column] = (table[_half(codes[at + column // TWO], place)] - zeros[group]) * scales[group]
        else:
            for group in range(u64(0), groups):
                begin, zero, scale = group * width, zeros[first + group], scales[first + group]
                end = min(begin + width, columns)
                for pair in range(begin // TWO, end // TWO):
                    byte, place = codes[at + pair], TWO * pair
                    wide[place] = (table[_half(byte, high)] - zero) * scale
                    wide[place + ONE] = (table[_half(byte, low)] - zero) * scale
                if end % TWO:
                    wide[end - ONE] = (table[_half(codes[at + end // TWO], high)] - zero) * scale
        _rounded(out, row * columns, wide, columns)


def biased(out, biases, rows, columns, width):
    """Add to each element the bias of its row and its group of columns."""
    like, groups = out[0], columns // width
    for group in range(u64(0), rows * groups):
        bias = biases[group]
        for at in range(group * width, group * width + width):
            out[at] = encoded(decoded(out[at]) + bias, like)


def across(out, wide, codes, table, scales, first, last, columns, stride):
    """Rows `first … last − 1` of what has its columns in memory as rows of halves of bytes.

    Column c begins at byte `c · stride` of the codes. Scales are of 32 rows each, beginning with those of `first`.
    """
    like, start = out[0], first
    while start < last:
        group = start // GROUP
        stop, at = min(last, (group + ONE) * GROUP), (group - first // GROUP) * columns
        begin = u64(0)
        while begin < columns:
            end = min(begin + AT_ONCE, columns)
            for row in range(start, stop):
                place, byte, to = HALF * (row % TWO), row // TWO, (row - start) * AT_ONCE - begin
                for column in range(begin, end):
                    value = table[_half(codes[column * stride + byte], place)]
                    wide[to + column] = value * scales[at + column]
            for row in range(start, stop):
                to, put = (row - start) * AT_ONCE - begin, (row - first) * columns
                for column in range(begin, end):
                    out[put + column] = encoded(wide[to + column], like)
            begin = end
        start = stop


def planes(words, out, places, count, columns):
    """Each word has a code of eight rows, of four bits from the bit `places[row]` on; `count` rows of words."""
    for row in range(u64(0), count * u64(8)):
        place, at, to = u32(places[row % u64(8)]), row // u64(8) * columns, row * columns
        for column in range(u64(0), columns):
            out[to + column] = u8(u32(words[at + column] >> place) & u32(15))


def dense(data, out, rows, stride, columns, bits):
    """Codes of 1 to 8 bits that are packed densely from the lowest bit on; a row begins every `stride` bytes."""
    mask = u32((ONE << bits) - ONE)
    for row in range(u64(0), rows):
        at, to = row * stride, row * columns
        for column in range(u64(0), columns):
            bit = column * bits
            byte = bit >> u64(3)
            both = u32(u32(data[at + byte]) | u32(u32(data[at + min(byte + ONE, stride - ONE)]) << u32(8)))
            out[to + column] = u8(u32(both >> u32(bit & u64(7))) & mask)


def turned(words, out, first, count, height, stride):
    """Columns `first … first + count − 1` of words, of `height` rows that begin every `stride`, one after the other."""
    begin = u64(0)
    while begin < height:
        end, low = min(begin + AT_ONCE, height), u64(0)
        while low < count:
            high = min(low + AT_ONCE, count)
            for column in range(low, high):
                for row in range(begin, end):
                    out[column * height + row] = words[row * stride + first + column]
            low = high
        begin = end
