"""The kernels of `fusion.ranks` for scores that are magnitudes of deltas."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ranks import BINS, DIGIT
from ..tile import RawTile
from .native import Kernel
from .tiles import scratch_words, seen

_SCORE_DIGITS = Kernel("ranks", "score_digits")
_PLACE_DIGITS = Kernel("ranks", "place_digits")
_WAYS, _OTHERS = 4, 16  # as in the source
_SCORE_BITS = 32


def digit_counts(
    tile: RawTile, _scores: Any, arguments: tuple[Any, ...], searches: tuple[Any, ...], found: int, place_bits: int
) -> np.ndarray:
    """Return how often each search's next digit has each value, and the bits of a score or place beside."""
    assert not arguments
    num_bits = place_bits or _SCORE_BITS
    rest = num_bits - min(found, num_bits)
    digit = min(DIGIT, rest)
    shift, mask = rest - digit, (1 << digit) - 1
    rows = np.zeros((len(searches), BINS + 1), np.int32)
    rows[:, -1] = num_bits
    count, base = len(tile.base), seen(tile.base)
    for row, search in zip(rows, searches, strict=True):
        tuned = seen(tile.tuned[search.stream])
        counts = np.zeros((_WAYS << digit) + _OTHERS, np.int32)
        if place_bits:
            place = (tile.start, search.value, rest, shift, mask, search.prefix)
            _PLACE_DIGITS(base, tuned, count, *place, counts)
            row[: 1 << digit] = counts[: 1 << digit]
        else:
            _SCORE_DIGITS(base, tuned, count, rest, shift, mask, search.prefix, scratch_words(), counts)
            row[: 1 << digit] = counts[: _WAYS << digit].reshape(_WAYS, -1).sum(axis=0)
    return rows
