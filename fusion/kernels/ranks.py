"""The kernels of `fusion.ranks` for scores that are magnitudes of deltas."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..methods.trim import magnitudes
from ..ranks import BINS, DIGIT
from ..tile import RawTile
from .native import Kernel, address
from .tiles import scratch_words

_SCORE_DIGITS = Kernel("ranks", "score_digits", "u uuuu WI")
_PLACE_DIGITS = Kernel("ranks", "place_digits", "uu uuuuu I")
_WAYS, _OTHERS = 4, 16  # as in the source


def counts(scores: Any, _arguments: Any, _searches: Any, _found: int, score_bits: int, _place_bits: int) -> bool:
    """Return whether the kernel stands in for the definition: for magnitudes that are compared in float32."""
    return scores is magnitudes and score_bits == 32


def digit_counts(
    tile: RawTile,
    _scores: Any,
    _arguments: tuple[()],
    searches: tuple[Any, ...],
    found: int,
    score_bits: int,
    place_bits: int,
) -> np.ndarray:
    """Return how often each search's next digit has each value, and the bits of a score beside."""
    rest = (place_bits or score_bits) - found
    digit = min(DIGIT, rest)
    shift, mask = rest - digit, (1 << digit) - 1
    rows = np.zeros((len(searches), BINS + 1), np.int32)
    rows[:, -1] = score_bits
    count = len(tile.base)
    for row, search in zip(rows, searches, strict=True):
        inputs = tile.base, tile.tuned[search.stream]
        counts = np.zeros((_WAYS << digit) + _OTHERS, np.int32)
        if place_bits:
            place = (tile.start, search.value, rest, shift, mask, search.prefix)
            _PLACE_DIGITS(inputs, count, *place, address(counts))
            row[: 1 << digit] = counts[: 1 << digit]
        else:
            _SCORE_DIGITS(inputs, count, rest, shift, mask, search.prefix, scratch_words(), address(counts))
            row[: 1 << digit] = counts[: _WAYS << digit].reshape(_WAYS, -1).sum(axis=0)
    return rows
