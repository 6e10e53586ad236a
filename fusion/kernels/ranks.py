"""The kernels of `fusion.arithmetic.ranks` for scores that are magnitudes of deltas, as they are or times `sqrt(H)`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arithmetic import ranks
from ..arithmetic.ranks import BINS, DIGIT
from ..arithmetic.tile import RawTile
from ..native import Kernel, address
from ..transforms.trim import magnitudes, saliencies
from .stand_in import StandIn
from .tiles import root_of, scratch_block, scratch_words

_SCORE_DIGITS = Kernel("ranks", "score_digits", "uu Fuu uuuuu FWI")
_PLACE_DIGITS = Kernel("ranks", "place_digits", "uu Fuu uuuuuu FI")
_WAYS, _OTHERS = 4, 16  # as in the source


def takes(_tile: RawTile, scores: Any, _arguments: Any, _searches: Any, _found: int, score_bits: int, _: int) -> bool:
    """Return whether these are scores that the kernel knows, compared in float32."""
    return scores in (magnitudes, saliencies) and score_bits == 32


def digit_counts(
    tile: RawTile,
    scores: Any,
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
    weighted = scores is saliencies and tile.root is not None
    place = (len(tile.base), weighted, *root_of(tile), tile.start)
    for row, search in zip(rows, searches, strict=True):
        inputs = tile.base, tile.tuned[search.stream]
        counts = np.zeros((_WAYS << digit) + _OTHERS, np.int32)
        if place_bits:
            digits = search.value, rest, shift, mask, search.prefix
            _PLACE_DIGITS(inputs, *place, *digits, scratch_block(), address(counts))
            row[: 1 << digit] = counts[: 1 << digit]
        else:
            digits = rest, shift, mask, search.prefix
            _SCORE_DIGITS(inputs, *place, *digits, scratch_block(), scratch_words(), address(counts))
            row[: 1 << digit] = counts[: _WAYS << digit].reshape(_WAYS, -1).sum(axis=0)
    return rows


STAND_INS = (StandIn(signature=(ranks.digit_counts,), kernel=digit_counts, takes=takes),)
