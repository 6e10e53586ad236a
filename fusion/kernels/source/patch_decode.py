"""The kernels that decode patches: from the base's words to the model's, a block at a time.

What the numbers mean is in `docs/patch-format.md`; `source.patch` has the encoder's side.
"""

from __future__ import annotations

from .blocks import NOWHERE, SIZE, last_kept, root_block
from .compiler import inlined
from .elements import LANES, decoded, encoded, f32, lowest_bit, mask_from, num_bits, u8, u32, u64
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
def _places(data, size, least, flipped, out):
    """Put into `out` where bytes are `least` or more, or less if `flipped` is all bits; return how many there are.

    Eight places are written at a time, the last of them perhaps idle: whether there is one more is guessed badly.
    """
    number = u64(0)
    for i in range(u64(0), size, u64(LANES)):
        mask = u32(mask_from(data, i, u8(least)) ^ flipped)
        if size - i < u64(LANES):
            mask = u32(mask & u32((u64(1) << (size - i)) - u64(1)))
        end, at = number + u64(num_bits(mask)), number
        while True:
            for k in range(u64(8)):
                out[at + k] = u32(u32(i) + lowest_bit(mask))
                mask = u32(mask & u32(mask - u32(1)))
            at += u64(8)
            if at >= end:
                break
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
def _coded(contexts, count, slots, positions, out):
    """Put into `positions` which elements are coded, and their contexts into `out`; return how many there are."""
    number = u64(0)
    for i in range(count):
        positions[number] = u32(i)
        number += u64(slots[u64(contexts[i])] != NONE)
    for j in range(number):
        out[j] = contexts[u64(positions[j])]
    return number


@inlined
def _coded_of_few(contexts, count, slots, positions, out):
    """Do as `_coded` does where most contexts are `NEVER`."""
    number = u64(0)
    for j in range(_places(contexts, count, NEVER, u32(0xFFFFFFFF), positions)):
        position = positions[j]
        context = contexts[u64(position)]
        positions[number], out[number] = position, context
        number += u64(slots[u64(context)] != NONE)
    return number


@inlined
def _decode_block(base, at, size, number, is_dense, coder, coded, positions, large, numbers, sizes, out):
    """Put a block's words into `out`.

    Args:
        number: How many elements are coded; `is_dense` says that it is all of them.
        coder: Where each context's slots begin, `NONE` where it has no table, and the slots; code words, states and
            bits; the highest bit of a word, and that of a float.
        coded: Contexts of the elements that are coded.
        positions: Their places in the block.
        sizes: Code words and bits that were read before, and how many elements; become those after.
    """
    slots, words, states, bits, sign, float_sign = coder
    place = _tokens(coded, number, slots, words, states, u64(sizes[2]), u64(sizes[0]))
    taken, num_large = u64(sizes[1]), _places(coded, number, DIRECT, u32(0), large)
    if is_dense:
        for i in range(size):
            numbers[i] = u32(coded[i])
        for k in range(num_large):
            j = u64(large[k])
            numbers[j], taken = _number(u32(coded[j]), bits, taken)
    else:
        for i in range(size):
            numbers[i] = u32(0)
        for j in range(number):
            numbers[u64(positions[j])] = u32(coded[j])
        for k in range(num_large):
            j = u64(large[k])
            numbers[u64(positions[j])], taken = _number(u32(coded[j]), bits, taken)
    for i in range(size):
        out[at + i] = moved(u32(base[at + i]), u32(numbers[i]), sign, float_sign)
    sizes[0], sizes[1], sizes[2] = u32(place), u32(taken), u32(u64(sizes[2]) + number)


def decode(
    base, count, shift, mask, top, is_dense, slots, words, states, bits, sign, float_sign,
    contexts, coded, positions, large, numbers, sizes, out,
):  # fmt: skip
    """Put the words that are coded, given the base's exponents, into `out`; what is read into `sizes`."""
    shift, mask, top, is_dense = u32(shift), u32(mask), u32(top), is_dense != u64(0)
    coder = slots, words, states, bits, u32(sign), u32(float_sign)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        block_of_contexts(base, at, size, shift, mask, top, contexts)
        number = size if is_dense else _coded(contexts, size, slots, positions, coded)
        _decode_block(
            base,
            at,
            size,
            number,
            is_dense,
            coder,
            contexts if is_dense else coded,
            positions,
            large,
            numbers,
            sizes,
            out,
        )


def decode_scaled(
    base, count, shift, mask, top, is_dense, start, columns, rows, of_columns, slots, words, states, bits,
    sign, float_sign, contexts, coded, positions, large, numbers, sizes, out,
):  # fmt: skip
    """Do as `decode` does, where the row and the column tell by how much an element is likely to differ."""
    shift, mask, top, is_dense = u32(shift), u32(mask), u32(top), is_dense != u64(0)
    coder = slots, words, states, bits, u32(sign), u32(float_sign)
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        block_of_scaled(base, at, size, shift, mask, top, start, columns, rows, of_columns, contexts)
        number = size if is_dense else _coded(contexts, size, slots, positions, coded)
        own = contexts if is_dense else coded
        _decode_block(base, at, size, number, is_dense, coder, own, positions, large, numbers, sizes, out)


def decode_drawn(
    base, count, shift, mask, top, start, key_low, key_high, keep, slots, words, states, bits,
    sign, float_sign, contexts, coded, positions, large, numbers, sizes, out,
):  # fmt: skip
    """Do as `decode` does, of elements that are drawn with probability `keep`."""
    shift, mask, top = u32(shift), u32(mask), u32(top)
    coder = slots, words, states, bits, u32(sign), u32(float_sign)
    last = last_kept(f32(keep))
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        first = u32(u32(start + at) + u32(key_low))
        block_of_drawn(base, at, size, shift, mask, top, first, u32(key_high), last, contexts)
        number = _coded_of_few(contexts, size, slots, positions, coded)
        _decode_block(base, at, size, number, False, coder, coded, positions, large, numbers, sizes, out)


def decode_thresholds(
    base, count, shift, mask, top, high, values, repeat, inner, start, key_low, key_high, c, root, buckets,
    slots, words, states, bits, sign, float_sign, contexts, coded, positions, large, numbers, sizes, out,
):  # fmt: skip
    """Do as `decode` does, of elements whose `τ = word/(c·sqrt(H))` is in a bucket up to `high`."""
    shift, mask, top, key_low, key_high, c = u32(shift), u32(mask), u32(top), u32(key_low), u32(key_high), f32(c)
    coder = slots, words, states, bits, u32(sign), u32(float_sign)
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        held = root_block(values, repeat, inner, start + at, size, root, held)
        first = u32(u32(start + at) + key_low)
        bucket_block(size, first, key_high, c, root, buckets, u64(0))
        block_of_thresholds(base, at, buckets, u64(0), size, shift, mask, top, u32(high), contexts)
        number = _coded(contexts, size, slots, positions, coded)
        _decode_block(base, at, size, number, False, coder, coded, positions, large, numbers, sizes, out)


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
