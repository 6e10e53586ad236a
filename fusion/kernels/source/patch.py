"""The kernels that code patches: contexts, differences, histograms and rANS, a frame at a time.

What the numbers mean is in `docs/patch-format.md`; `fusion.patch` has the same words.
"""

from __future__ import annotations

from ...arithmetic.tile import TWO_32
from .blocks import NOWHERE, SIZE, last_kept, root_block, word
from .compiler import inlined
from .elements import LANES, bits_of, decoded, f32, f64, fitted, i32, lowest_bit, mask_from, u8, u32, u64

DIRECT = u32(32)  # smaller numbers are a token each; a larger one's token has its octave and two bits more
PROBABILITY_BITS = u64(12)
TOTAL = u64(1 << 12)
WHOLE = u64(1 << 44)
LOWEST = u64(1 << 16)  # of a coder's state
EXPONENTS = u32(16)  # contexts of the base's exponent
NEVER = u32(255)  # the context of an element that is the base's for certain
NONE = u32(0xFFFFFFFF)  # where the slots of a context begin that has no table
_TWO_32 = f32(TWO_32)


@inlined
def _context(bits, shift, mask, top):
    exponent = u32(u32(bits >> u32(shift & u32(31))) & mask)  # as LLVM knows the shift is short, lanes stay narrow
    return u32(min(u32(top - min(exponent, top)), EXPONENTS - u32(1)))


@inlined
def block_of_contexts(base, at, size, shift, mask, top, out):
    """Put the context of each of a block's elements into `out`: how far the base's exponent is below `top`."""
    for i in range(size):
        out[i] = _context(u32(base[at + i]), shift, mask, top)


@inlined
def block_of_drawn(base, at, size, shift, mask, top, first, key_high, last, out):
    """Put contexts into `out`: `NEVER` where an element's word is above `last`; `first` is the index of the first."""
    for i in range(size):
        drawn = word(u32(first + u32(i)), key_high) <= last
        found = _context(u32(base[at + i]), shift, mask, top)  # a load under the condition would not be a vector's
        out[i] = found if drawn else NEVER


@inlined
def block_of_scaled(base, at, size, shift, mask, top, start, columns, rows, of_columns, out):
    """Put contexts into `out`: by how many steps an element is likely to differ, in half octaves.

    Args:
        start: Of the frame in the tensor; `rows` has a byte for each row from that one on.
    """
    row, column = (start + at) // columns, (start + at) % columns
    row -= start // columns
    i = u64(0)
    while i < size:
        length, of_row = min(columns - column, size - i), u32(rows[row])
        for k in range(length):
            likely = u32(u32(of_row + u32(of_columns[column + k])) >> u32(1))
            found = u32(u32(_context(u32(base[at + i + k]), shift, mask, top) << u32(1)) + likely)
            out[i + k] = min(found, NEVER - u32(1))
        i += length
        row += u64(1)
        column = u64(0)


@inlined
def bucket_block(size, first, key_high, c, root, out, at):
    """Put the bucket of `τ = word/(c·sqrt(H))` into `out`: an element is kept where |δ|·2³² is larger than τ."""
    for i in range(size):
        drawn = f32(word(u32(first + u32(i)), key_high))
        out[at + i] = bits_of(drawn / (c * root[i])) >> u32(21)


@inlined
def block_of_thresholds(base, at, buckets, place, size, shift, mask, top, high, out):
    """Put contexts into `out`: `NEVER` where the threshold's bucket is above `high`, else bucket and exponent."""
    for i in range(size):
        bucket = u32(buckets[place + i])
        below = min(u32(high - min(bucket, high)), u32(14))
        found = u32(_context(u32(base[at + i]), shift, mask, top) + EXPONENTS * below)
        out[i] = found if bucket <= high else NEVER


def top_exponent(base, count, shift, mask, out):
    """Put the largest exponent into `out`."""
    shift, mask, top = u32(shift), u32(mask), u32(0)
    for i in range(u64(0), count):
        top = max(top, u32(u32(base[i]) >> shift) & mask)
    out[0] = top


def contexts(base, count, shift, mask, top, out):
    """Put the context of each element into `out`."""
    block_of_contexts(base, u64(0), count, u32(shift), u32(mask), u32(top), out)


def scaled_contexts(base, count, shift, mask, top, start, columns, rows, of_columns, out):
    """Put the context of each element into `out`, of those whose row and column tell by how much they differ."""
    block_of_scaled(base, u64(0), count, u32(shift), u32(mask), u32(top), start, columns, rows, of_columns, out)


def drawn_contexts(base, count, shift, mask, top, start, key_low, key_high, keep, out):
    """Put the context of each element into `out`, of those that are drawn with probability `keep`."""
    first = u32(u32(start) + u32(key_low))
    last = last_kept(f32(keep))
    block_of_drawn(base, u64(0), count, u32(shift), u32(mask), u32(top), first, u32(key_high), last, out)


def thresholds(count, values, repeat, inner, start, key_low, key_high, c, root, out):
    """Put the bucket of each element's threshold into `out`."""
    key_low, key_high, c = u32(key_low), u32(key_high), f32(c)
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        held = root_block(values, repeat, inner, start + at, size, root, held)
        bucket_block(size, u32(u32(start + at) + key_low), key_high, c, root, out, at)


def threshold_contexts(base, buckets, count, shift, mask, top, high, out):
    """Put the context of each element into `out`, of those whose bucket is not above `high`."""
    block_of_thresholds(base, u64(0), buckets, u64(0), count, u32(shift), u32(mask), u32(top), u32(high), out)


@inlined
def _token(z):
    large = z >= u32(65536)
    v = u32(z >> u32(8)) if large else z  # float32 has all of its bits
    octaves = u32(bits_of(f32(v)) >> u32(21))  # four times the octave, and the two bits below the highest
    token = u32(octaves - u32(508 - 12)) + (u32(32) if large else u32(0))
    return token if z >= DIRECT else z


@inlined
def _negative(x, sign, float_sign):
    """Return all bits where a float is negative, else none."""
    return fitted(u64(0) - u64(fitted(x & sign & float_sign, sign) != u64(0)), sign)


@inlined
def _ordered(x, sign, negative):
    """Return bits as a number that grows with the float; of such a number the bits."""
    return fitted(x ^ fitted(fitted(sign - u64(1), sign) & negative, sign), sign)


@inlined
def _difference(base, target, sign, float_sign):
    """Return by how many steps the target is further from zero than the base, zigzag, modulo the width.

    Everything is done in the width of `sign`, so that as many lanes as there can be work at a time.
    """
    own, other = _negative(base, sign, float_sign), _negative(target, sign, float_sign)
    difference = fitted(_ordered(target, sign, other) - _ordered(base, sign, own), sign)
    difference = fitted(fitted(difference ^ own, sign) - own, sign)
    below = _negative(difference, sign, sign)
    return fitted(fitted(difference << u64(1), sign) ^ below, sign)


@inlined
def moved(base, number, sign, float_sign):
    """Return the target of a base and their difference."""
    own, number = _negative(base, sign, float_sign), fitted(number, sign)
    difference = fitted(fitted(number >> u64(1), sign) ^ fitted(u64(0) - u64(number & u64(1)), sign), sign)
    difference = fitted(fitted(difference ^ own, sign) - own, sign)
    moved = fitted(_ordered(base, sign, own) + difference, sign)
    return _ordered(moved, sign, _negative(moved, sign, float_sign))


def tokens(base, target, count, sign, float_sign, contexts, highest, numbers, out):
    """Put each difference into `numbers` and its token into `out`; 0 where the context says that there is none."""
    sign, float_sign = fitted(sign, numbers[0]), fitted(float_sign, numbers[0])
    for i in range(u64(0), count):
        z = u32(_difference(base[i], target[i], sign, float_sign))
        z = z if contexts[i] <= highest else u32(0)
        numbers[i] = z
        out[i] = _token(z)


def sum_sizes(base, target, count, first, columns, sizes, of_rows, of_columns):
    """Put the mean of |δ| of each row into `of_rows`, and add up that of each column in `of_columns`.

    Args:
        first: The column of the first element.
        sizes: Room for a row.
    """
    at, row = u64(0), u64(0)
    while at < count:
        length = min(columns - first, count - at)
        for k in range(length):
            size = abs(decoded(target[at + k]) - decoded(base[at + k]))
            size = size if size < f32(1e30) else f32(0)  # infinite, or none
            sizes[k] = size
            of_columns[first + k] += size
        a, b, c, d = f32(0), f32(0), f32(0), f32(0)
        k = u64(0)
        while k + u64(4) <= length:
            a += sizes[k]
            b += sizes[k + u64(1)]
            c += sizes[k + u64(2)]
            d += sizes[k + u64(3)]
            k += u64(4)
        while k < length:
            a += sizes[k]
            k += u64(1)
        of_rows[row] = ((a + b) + (c + d)) / f32(i32(length))
        at += length
        row += u64(1)
        first = u64(0)


def count_tokens(contexts, tokens, count, rows, alphabet, counts):
    """Add up how often each token comes in each context; `counts` are four tables, whose last row is for `NEVER`."""
    table, last = rows * alphabet, rows - u64(1)
    for i in range(u64(0), count):
        counts[(i & u64(3)) * table + min(u64(contexts[i]), last) * alphabet + u64(tokens[i])] += u32(1)


@inlined
def _entropy(n, logarithms):
    """Return `n·log2(n)`, nearly."""
    bits = bits_of(f32(n))
    return f64(n) * (f64(i32(bits >> u32(23)) - i32(127)) + f64(logarithms[u64(u32(bits >> u32(12)) & u32(2047))]))


@inlined
def _cost(counts, alphabet, first, second, logarithms):
    """Return the bits that rows of tokens take with one table, and those of the table."""
    total, inside, last = u32(0), f64(0), u64(0)
    for k in range(alphabet):
        n = u32(counts[first * alphabet + k] + (counts[second * alphabet + k] if second != first else u32(0)))
        if n != u32(0):
            total = u32(total + n)
            inside += _entropy(n, logarithms)
            last = k
    if total == u32(0):
        return f64(0)
    return _entropy(total, logarithms) - inside + f64(8) * f64(last) + f64(24)


def share_tables(counts, rows, alphabet, logarithms, most, costs, gains, following, table_of):
    """Have neighbouring contexts share a table where that is shorter, and until there are no more than `most`.

    Args:
        counts: Of `rows` contexts; a row that others join holds the sum.
        costs, gains, following: Room for a number each.
        table_of: Becomes the row that stands for each context.
    """
    none = i32(-1)
    before, first, number = none, none, u64(0)
    for row in range(u64(0), rows):
        costs[row] = _cost(counts, alphabet, row, row, logarithms)
        table_of[row] = i32(row)
        if costs[row] > f64(0):
            if before == none:
                first = i32(row)
            else:
                following[u64(before)] = i32(row)
                gains[u64(before)] = (
                    costs[u64(before)] + costs[row] - _cost(counts, alphabet, u64(before), row, logarithms)
                )
            before = i32(row)
            number += u64(1)
    if before != none:
        following[u64(before)] = none
    while number > u64(1):
        best, at, previous, preceding = f64(-1e300), none, none, none
        row = first
        while following[u64(row)] != none:
            if gains[u64(row)] > best:
                best, at, preceding = gains[u64(row)], row, previous
            previous = row
            row = following[u64(row)]
        if best <= f64(0) and number <= most:
            break
        joined = following[u64(at)]
        for k in range(alphabet):
            counts[u64(at) * alphabet + k] += counts[u64(joined) * alphabet + k]
        costs[u64(at)] = costs[u64(at)] + costs[u64(joined)] - best
        following[u64(at)] = following[u64(joined)]
        for other in range(u64(0), rows):
            if table_of[other] == joined:
                table_of[other] = at
        after = following[u64(at)]
        if after != none:
            gains[u64(at)] = (
                costs[u64(at)] + costs[u64(after)] - _cost(counts, alphabet, u64(at), u64(after), logarithms)
            )
        if preceding != none:
            gains[u64(preceding)] = (
                costs[u64(preceding)] + costs[u64(at)] - _cost(counts, alphabet, u64(preceding), u64(at), logarithms)
            )
        number -= u64(1)


def make_tables(counts, rows, tables, alphabet, entries, inverses, data, sizes):
    """Put what `encode` wants of tables into `entries` and `inverses`; into `data` how they are written.

    Args:
        rows: Of each table the row of counts, whose sum is not 0.
        data: The last token of each table; then of each the frequencies up to it, out of 4,096: one byte if below 128.
    """
    at = tables
    for table in range(u64(0), tables):
        row, first = u64(rows[table]) * alphabet, table * alphabet
        total, kinds, last = u64(0), u64(0), u64(0)
        for k in range(alphabet):
            n = u64(counts[row + k])
            total += n
            kinds += u64(n != u64(0))
            last = k if n != u64(0) else last
        left, largest, spare = TOTAL, u64(0), TOTAL - kinds
        for k in range(alphabet):
            n = u64(counts[row + k])
            frequency = u64(n != u64(0)) + n * spare // total
            entries[first + k] = u32(frequency)
            largest = k if frequency > u64(entries[first + largest]) else largest
            left -= frequency
        entries[first + largest] += u32(left)
        start, data[table] = u64(0), last
        for k in range(alphabet):
            frequency = u64(entries[first + k])
            if k <= last:
                data[at] = frequency if frequency < u64(128) else (frequency & u64(127)) | u64(128)
                at += u64(1)
                if frequency >= u64(128):
                    data[at] = frequency >> u64(7)
                    at += u64(1)
            entries[first + k] = u32(start | (frequency << u64(16)))
            inverses[first + k] = (WHOLE + frequency - u64(1)) // max(frequency, u64(1))
            start += frequency
    sizes[0] = u32(at)


def compact(contexts, tokens, numbers, count, offsets, sizes):
    """Move elements whose context has a table to the front, and put into `sizes` how many there are."""
    number = u64(0)
    for i in range(u64(0), count):
        context = contexts[i]
        contexts[number], tokens[number], numbers[number] = context, tokens[i], numbers[i]
        number += u64(offsets[u64(context)] != NONE)
    sizes[0] = u32(number)


@inlined
def _append(token, number, bits, place, room, filled):
    """Add the bits that follow a token; return the place, and what waits to be written there."""
    beyond = u32(token - DIRECT)
    length = u64(u32(beyond >> u32(2)) + u32(3))
    room |= (number & ((u64(1) << length) - u64(1))) << filled
    filled += length
    bits[place] = u32(room & u64(0xFFFFFFFF))
    return place + (filled >> u64(5)), room >> (filled & u64(32)), filled & u64(31)


def append_bits(tokens, numbers, count, bits, sizes):
    """Put the bits that follow tokens into `bits`, and how many into `sizes`."""
    room, filled, place = u64(0), u64(0), u64(0)
    for i in range(u64(0), count, u64(LANES)):
        mask = mask_from(tokens, i, u8(DIRECT))
        if count - i < u64(LANES):
            mask = u32(mask & u32((u64(1) << (count - i)) - u64(1)))
        while mask != u32(0):
            j = i + u64(lowest_bit(mask))
            place, room, filled = _append(u32(tokens[j]), u64(numbers[j]), bits, place, room, filled)
            mask = u32(mask & u32(mask - u32(1)))
    bits[place] = u32(room)
    sizes[1] = u32(place * u64(32) + filled)


@inlined
def _put(state, context, token, offsets, entries, inverses, words, at):
    """Return a state with a token on it, and where the next word goes; words are written from the end."""
    symbol = u64(offsets[u64(context)]) + u64(token)
    entry, inverse = entries[symbol], inverses[symbol]
    start, frequency = u64(entry & u32(0xFFFF)), u64(entry >> u32(16))
    full = u64(state >= (frequency << u64(20)))
    words[at - u64(1)] = u32(state & u64(0xFFFF))
    at -= full
    state >>= full << u64(4)
    # A division by the frequency f: state < f·2²⁰, so that neither the product overflows nor the quotient is off.
    whole = (state * inverse) >> u64(44)
    return state + whole * (TOTAL - frequency) + start, at


def encode(contexts, tokens, count, offsets, entries, inverses, words, room, states, sizes):
    """Code tokens by eight states in turn, from the last to the first.

    Args:
        offsets: Where the entries of each context's table begin.
        entries: Start and, 16 bits higher, frequency of each of its tokens.
        inverses: 2⁴⁴ over each frequency, rounded up.
        words: Room for `room` words, one more than tokens; those at the end are filled.
        states: Room for eight.
        sizes: Becomes how many words.
    """
    at, j = room, count
    for k in range(u64(8)):
        states[k] = u32(LOWEST)
    while j & u64(7):
        j -= u64(1)
        state, at = _put(u64(states[j & u64(7)]), contexts[j], tokens[j], offsets, entries, inverses, words, at)
        states[j & u64(7)] = u32(state)
    a, b, c, d = u64(states[0]), u64(states[1]), u64(states[2]), u64(states[3])
    e, f, g, h = u64(states[4]), u64(states[5]), u64(states[6]), u64(states[7])
    while j:
        j -= u64(8)
        h, at = _put(h, contexts[j + u64(7)], tokens[j + u64(7)], offsets, entries, inverses, words, at)
        g, at = _put(g, contexts[j + u64(6)], tokens[j + u64(6)], offsets, entries, inverses, words, at)
        f, at = _put(f, contexts[j + u64(5)], tokens[j + u64(5)], offsets, entries, inverses, words, at)
        e, at = _put(e, contexts[j + u64(4)], tokens[j + u64(4)], offsets, entries, inverses, words, at)
        d, at = _put(d, contexts[j + u64(3)], tokens[j + u64(3)], offsets, entries, inverses, words, at)
        c, at = _put(c, contexts[j + u64(2)], tokens[j + u64(2)], offsets, entries, inverses, words, at)
        b, at = _put(b, contexts[j + u64(1)], tokens[j + u64(1)], offsets, entries, inverses, words, at)
        a, at = _put(a, contexts[j], tokens[j], offsets, entries, inverses, words, at)
    states[0], states[1], states[2], states[3] = u32(a), u32(b), u32(c), u32(d)
    states[4], states[5], states[6], states[7] = u32(e), u32(f), u32(g), u32(h)
    sizes[0] = u32(room - at)
