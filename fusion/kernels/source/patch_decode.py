"""The kernels that decode patches: from the base's words to the model's, a block at a time.

What the numbers mean is in `docs/patch-format.md`; `source.patch` has the encoder's side.
"""

from __future__ import annotations

from .blocks import NOWHERE, SIZE, last_kept, root_block
from .compiler import inlined
from .elements import LANES, decoded, encoded, f32, fitted, lowest_bit, mask_from, num_bits, reorder, u8, u32, u64
from .patch import (
    DIRECT,
    LOWEST,
    NEVER,
    NONE,
    PROBABILITY_BITS,
    TOTAL,
    block_of_contexts,
    block_of_drawn,
    block_of_scaled,
    block_of_thresholds,
    bucket_block,
    moved,
)


def read_tables(data, nbytes, lasts, tables, alphabet, slots, sizes):
    """Put what a state's slot says into `slots`, and into `sizes` how many bytes the tables took: 0 if they are none.

    Args:
        data: Frequencies of tokens 0 … last of each table, of one byte below 128, else of two.
        slots: 4,096 a table: a token, 8 bits higher its frequency − 1, 20 bits higher the slot's place in it.
    """
    at, sizes[0] = u64(0), u32(0)
    for table in range(u64(0), tables):
        start = u64(0)
        for token in range(u64(lasts[table]) + u64(1)):
            if at >= nbytes or token >= alphabet:
                return
            frequency = u64(data[at])
            at += u64(1)
            if frequency >= u64(128):
                if at >= nbytes:
                    return
                frequency = (frequency & u64(127)) | (u64(data[at]) << u64(7))
                at += u64(1)
            if start + frequency > TOTAL:
                return
            first = (table << PROBABILITY_BITS) + start
            said = u32(u32(token) | u32(u32(frequency - u64(1)) << u32(8)))
            for k in range(frequency):
                slots[first + k] = u32(said | u32(u32(k) << u32(20)))
            start += frequency
        if start != TOTAL:
            return
    sizes[0] = u32(at)


@inlined
def _take(state, contexts, j, slots, words, at):
    """Put a token where its context is; return the state without it, and where the next word is."""
    said = slots[u64(slots[u64(contexts[j])]) + (state & (TOTAL - u64(1)))]
    contexts[j] = said  # its lowest byte
    state = (u64(u32(said >> u32(8)) & u32(0xFFF)) + u64(1)) * (state >> PROBABILITY_BITS) + u64(said >> u32(20))
    fuller = (state << u64(16)) | u64(words[at])
    low = state < LOWEST
    return (fuller if low else state), at + u64(low)


@inlined
def _take_one(states, k, contexts, j, slots, words, at):
    state, at = _take(u64(states[k]), contexts, j, slots, words, at)
    states[k] = u32(state)
    return at


@inlined
def _tokens(contexts, count, slots, words, states, turn, at):
    """Put the tokens of coded elements in place of their contexts; return where the next word is.

    Args:
        states: The eight states; `turn` says whose turn it is.
    """
    j = u64(0)
    while j < count and (turn + j) & u64(7):
        at = _take_one(states, (turn + j) & u64(7), contexts, j, slots, words, at)
        j += u64(1)
    a, b, c, d = u64(states[0]), u64(states[1]), u64(states[2]), u64(states[3])
    e, f, g, h = u64(states[4]), u64(states[5]), u64(states[6]), u64(states[7])
    while j + u64(8) <= count:
        a, at = _take(a, contexts, j, slots, words, at)
        b, at = _take(b, contexts, j + u64(1), slots, words, at)
        c, at = _take(c, contexts, j + u64(2), slots, words, at)
        d, at = _take(d, contexts, j + u64(3), slots, words, at)
        e, at = _take(e, contexts, j + u64(4), slots, words, at)
        f, at = _take(f, contexts, j + u64(5), slots, words, at)
        g, at = _take(g, contexts, j + u64(6), slots, words, at)
        h, at = _take(h, contexts, j + u64(7), slots, words, at)
        j += u64(8)
    states[0], states[1], states[2], states[3] = u32(a), u32(b), u32(c), u32(d)
    states[4], states[5], states[6], states[7] = u32(e), u32(f), u32(g), u32(h)
    while j < count:
        at = _take_one(states, (turn + j) & u64(7), contexts, j, slots, words, at)
        j += u64(1)
    return at


@inlined
def _places(data, size, least, out):
    """Put into `out` where bytes are `least` or more; return how many there are.

    Eight places are written at a time, the last of them perhaps idle: whether there is one more is guessed badly.
    """
    number = u64(0)
    for i in range(u64(0), size, u64(LANES)):
        mask = mask_from(data, i, u8(least))
        if size - i < u64(LANES):
            mask = u32(mask & u32((u64(1) << (size - i)) - u64(1)))
        end, at = number + u64(num_bits(mask)), number
        while at < end:
            for k in range(u64(8)):
                out[at + k] = u32(u32(i) + lowest_bit(mask))
                mask = u32(mask & u32(mask - u32(1)))
            at += u64(8)
        number = end
    return number


@inlined
def _number(token, bits, at):
    """Return the number that a token and the bits after it are, and where the next bits are."""
    beyond = u32(token - DIRECT)
    length, place = u64(u32(beyond >> u32(2)) + u32(3)), at >> u64(5)
    room = u64(bits[place]) | (u64(bits[place + u64(1)]) << u64(32))
    low = (room >> (at & u64(31))) & ((u64(1) << length) - u64(1))
    return u32(((u64(u32(beyond & u32(3)) | u32(4)) << length) | low) & u64(0xFFFFFFFF)), at + length


@inlined
def _squeeze(contexts, size, orders, out):
    """Put all contexts but `NEVER` side by side into `out`; return how many there are."""
    number = u64(0)
    for i in range(u64(0), size, u64(LANES)):
        mask = u32(~mask_from(contexts, i, u8(NEVER)))
        for k in range(u64(0), u64(LANES), u64(8)):
            order = u64(mask & u32(255))
            reorder(contexts, i + k, orders, order << u64(3), out, number)
            number += u64(num_bits(u32(order)))
            mask = u32(mask >> u32(8))
    return number


@inlined
def _drop(contexts, count, slots, has_table):
    """Leave contexts that have a table side by side; say of each whether it has, and return how many have."""
    number = u64(0)
    for j in range(count):
        context = contexts[j]
        has_table[j] = u32(slots[u64(context)] != NONE)
        contexts[number] = context
        number += u64(has_table[j])
    return number


@inlined
def _take_back(tokens, number, count, has_table):
    """Put tokens where the contexts were that `_drop` has left, and 0 in place of the others."""
    j = count
    while j:
        j -= u64(1)
        number -= u64(has_table[j])
        tokens[j] = tokens[number] if has_table[j] != u32(0) else u8(0)


@inlined
def _spread(tokens, size, orders, contexts):
    """Put tokens in place of the contexts that they belong to, and 0 in place of `NEVER`."""
    number = u64(0)
    for i in range(u64(0), size, u64(LANES)):
        mask = u32(~mask_from(contexts, i, u8(NEVER)))
        for k in range(u64(0), u64(LANES), u64(8)):
            order = u64(mask & u32(255))
            reorder(tokens, number, orders, (u64(256) | order) << u64(3), contexts, i + k)
            number += u64(num_bits(u32(order)))
            mask = u32(mask >> u32(8))


@inlined
def _tokens_of_few(size, coder, orders, contexts, coded, places, sizes):
    """Put the tokens of elements that are coded in place of a block's contexts, and 0 elsewhere."""
    slots, words, states, _, _, _ = coder
    for i in range(size, (size + u64(LANES - 1)) & u64(0x10000 - LANES)):
        contexts[i] = NEVER  # is no element
    count, missing = _squeeze(contexts, size, orders, coded), u64(0)
    for j in range(count):
        missing += u64(slots[u64(coded[j])] == NONE)
    number = count if missing == u64(0) else _drop(coded, count, slots, places)
    sizes[0] = u32(_tokens(coded, number, slots, words, states, u64(sizes[2]), u64(sizes[0])))
    if missing != u64(0):
        _take_back(coded, number, count, places)
    _spread(coded, size, orders, contexts)
    return number


@inlined
def _decode_block(base, at, size, is_dense, coder, orders, contexts, coded, places, sizes, out):
    """Put a block's words into `out`.

    Args:
        is_dense: Whether all elements are coded.
        coder: Where each context's slots begin, `NONE` where it has no table, and the slots; code words, states and
            bits; the highest bit of a word, and that of a float.
        orders: Of each eight bits, where eight bytes go for those that are set to lie side by side; then the way back.
        contexts: Of the block's elements; they become their tokens.
        coded, places: Room.
        sizes: Code words and bits that were read before, and how many elements; become those after.
    """
    slots, words, states, bits, sign, float_sign = coder
    number = size
    if is_dense:
        sizes[0] = u32(_tokens(contexts, size, slots, words, states, u64(sizes[2]), u64(sizes[0])))
    else:
        number = _tokens_of_few(size, coder, orders, contexts, coded, places, sizes)
    for i in range(size):
        out[at + i] = moved(base[at + i], contexts[i], sign, float_sign)
    taken = u64(sizes[1])
    for k in range(_places(contexts, size, DIRECT, places)):
        i = u64(places[k])
        difference, taken = _number(u32(contexts[i]), bits, taken)
        out[at + i] = moved(base[at + i], difference, sign, float_sign)
    sizes[1], sizes[2] = u32(taken), u32(u64(sizes[2]) + number)


def decode(
    base, count, shift, mask, top, is_dense, slots, words, states, bits, sign, float_sign,
    orders, contexts, coded, places, sizes, out,
):  # fmt: skip
    """Put the words that are coded, given the base's exponents, into `out`; what is read into `sizes`."""
    shift, mask, top, is_dense = u32(shift), u32(mask), u32(top), is_dense != u64(0)
    coder = slots, words, states, bits, fitted(sign, out[0]), fitted(float_sign, out[0])
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        block_of_contexts(base, at, size, shift, mask, top, contexts)
        _decode_block(base, at, size, is_dense, coder, orders, contexts, coded, places, sizes, out)


def decode_scaled(
    base, count, shift, mask, top, is_dense, start, columns, rows, of_columns, slots, words, states, bits,
    sign, float_sign, orders, contexts, coded, places, sizes, out,
):  # fmt: skip
    """Do as `decode` does, where the row and the column tell by how much an element is likely to differ."""
    shift, mask, top, is_dense = u32(shift), u32(mask), u32(top), is_dense != u64(0)
    coder = slots, words, states, bits, fitted(sign, out[0]), fitted(float_sign, out[0])
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        block_of_scaled(base, at, size, shift, mask, top, start, columns, rows, of_columns, contexts)
        _decode_block(base, at, size, is_dense, coder, orders, contexts, coded, places, sizes, out)


def decode_drawn(
    base, count, shift, mask, top, start, key_low, key_high, keep, slots, words, states, bits,
    sign, float_sign, orders, contexts, coded, places, sizes, out,
):  # fmt: skip
    """Do as `decode` does, of elements that are drawn with probability `keep`."""
    shift, mask, top = u32(shift), u32(mask), u32(top)
    coder = slots, words, states, bits, fitted(sign, out[0]), fitted(float_sign, out[0])
    last = last_kept(f32(keep))
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        first = u32(u32(start + at) + u32(key_low))
        block_of_drawn(base, at, size, shift, mask, top, first, u32(key_high), last, contexts)
        _decode_block(base, at, size, False, coder, orders, contexts, coded, places, sizes, out)


def decode_thresholds(
    base, count, shift, mask, top, high, values, repeat, inner, start, key_low, key_high, c, root, buckets,
    slots, words, states, bits, sign, float_sign, orders, contexts, coded, places, sizes, out,
):  # fmt: skip
    """Do as `decode` does, of elements whose `τ = word/(c·sqrt(H))` is in a bucket up to `high`."""
    shift, mask, top, key_low, key_high, c = u32(shift), u32(mask), u32(top), u32(key_low), u32(key_high), f32(c)
    coder = slots, words, states, bits, fitted(sign, out[0]), fitted(float_sign, out[0])
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        held = root_block(values, repeat, inner, start + at, size, root, held)
        first = u32(u32(start + at) + key_low)
        bucket_block(size, first, key_high, c, root, buckets, u64(0))
        block_of_thresholds(base, at, buckets, u64(0), size, shift, mask, top, u32(high), contexts)
        _decode_block(base, at, size, False, coder, orders, contexts, coded, places, sizes, out)


def rescale(base, tuned, out, count, factor):
    """Put `base + factor·δ` where the tuned word is another than the base's, else the base's word, into `out`."""
    factor, like = f32(factor), out[0]
    for i in range(u64(0), count):
        b = decoded(base[i])
        fused = encoded(b + factor * (decoded(tuned[i]) - b), like)
        out[i] = base[i] if tuned[i] == base[i] else fused


def rescale_by_root(base, tuned, out, count, values, repeat, inner, start, c, gamma, root):
    """Put `base + γ·δ/q` where the tuned word is another than the base's, else the base's word, into `out`."""
    c, gamma, one, like = f32(c), f32(gamma), f32(1), out[0]
    whole, held = gamma == f32(1), (NOWHERE, NOWHERE)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        held = root_block(values, repeat, inner, start + at, size, root, held)
        for i in range(size):
            b, t = decoded(base[at + i]), decoded(tuned[at + i])
            delta = t - b
            keep = c * (root[i] * abs(delta))
            clip = keep >= one
            fused = b + gamma * (delta / (one if clip else keep))
            fused = encoded(t if whole & clip else fused, like)
            out[at + i] = base[at + i] if tuned[at + i] == base[at + i] else fused
