"""The kernels of `fusion.ranks` for scores that are magnitudes of deltas, as they are or times `sqrt(H)`."""

from __future__ import annotations

from .blocks import NOWHERE, SIZE, root_block
from .compiler import inlined
from .elements import bits_of, decoded, i32, u32, u64

WAYS = u64(4)  # counts are kept this many times over, so that equal neighbours do not wait for each other
OTHERS = u64(16)


@inlined
def _score(base, tuned, root, weighted):
    magnitude = abs(decoded(tuned) - decoded(base))
    return root * magnitude if weighted else magnitude


def score_digits(
    base, tuned, count, weighted, values, repeat, inner, start, rest, shift, mask, prefix, root, bins, counts
):  # fmt: skip
    """Count, of the scores whose bits above `rest` are `prefix`, each value of the digit at `shift`.

    Without a branch: the others are counted too, beyond the digits.

    Args:
        weighted: Whether scores are times `root`.
        rest: 32 or more where no bits are known.
        mask: The largest value of a digit.
        bins: Room for a block.
        counts: `WAYS` times `mask + 1` numbers and `OTHERS` more, zero at first.
    """
    known, rest, shift, mask, wanted = rest < u64(32), u32(rest), u32(shift), u32(mask), u32(prefix)
    num_values = u32(mask + u32(1))
    others = u32(num_values * u32(WAYS))
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        if weighted:
            held = root_block(values, repeat, inner, start + at, size, root, held)
        for i in range(size):
            bits = bits_of(_score(base[at + i], tuned[at + i], root[i], weighted))
            digit = u32(u32(u32(bits >> shift) & mask) + u32(u32(u32(i) % u32(WAYS)) * num_values))
            bins[i] = digit if (not known) | (u32(bits >> rest) == wanted) else u32(others + u32(u32(i) % u32(OTHERS)))
        for i in range(size):
            counts[u64(bins[i])] += i32(1)


def place_digits(
    base, tuned, count, weighted, values, repeat, inner, start, value, rest, shift, mask, prefix, root, counts
):  # fmt: skip
    """Count, of the places above `rest` with `prefix` where the score has bits `value`, each value of their digit.

    Args:
        counts: `mask + 1` numbers, zero at first.
    """
    value = u32(value)
    held = NOWHERE, NOWHERE
    for at in range(u64(0), count, SIZE):
        size = min(SIZE, count - at)
        first = start + at
        last = first + size - u64(1)
        if (last >> rest) < prefix or (first >> rest) > prefix:
            continue
        if weighted:
            held = root_block(values, repeat, inner, first, size, root, held)
        if (first >> shift) == (last >> shift):
            number = i32(0)
            for i in range(size):
                equal = bits_of(_score(base[at + i], tuned[at + i], root[i], weighted)) == value
                number = i32(number + i32(equal))
            counts[(first >> shift) & mask] += number
        else:
            for i in range(size):
                equal = bits_of(_score(base[at + i], tuned[at + i], root[i], weighted)) == value
                if equal and ((first + i) >> rest) == prefix:
                    counts[((first + i) >> shift) & mask] += i32(1)
