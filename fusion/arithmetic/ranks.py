"""The exact k-th largest of any score over a whole tensor, found in a few passes over its tiles.

Bits of a non-negative float order as its value does. Each pass counts, among the elements that share the leading bits
found so far, those with each value of the next eleven: three passes find the k-th float32. Where elements tie with it,
the same search over their places finds the last one to be kept: the lowest places are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from .passes import Pass
from .sums import beside, wide
from .tile import Tile

DIGIT = 11  # bits that one pass finds
BINS = 1 << DIGIT

Scores = Callable[..., Sequence[Any]]  # of a tile and arguments: non-negative, shape (n,), one array a stream


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a selection ends: all above `value` are in it, and those equal to it up to `place`.

    Attributes:
        wide: Whether scores are compared in float64, since some are.
    """

    value: float
    place: int
    wide: bool = False

    def selects(self, scores: Any, start: int) -> Any:
        """Return which of the scores of elements `start …` are selected; bool, shape (n,)."""
        xp = array_namespace(scores)
        exact = wide(scores) if self.wide else scores
        places = xp.arange(start, start + exact.shape[0], dtype=xp.int64, device=exact.device)
        return beside((exact > self.value) | ((exact == self.value) & (places <= self.place)), scores, xp.bool)


NOTHING = Cut(value=float("inf"), place=-1)
EVERYTHING = Cut(value=-1.0, place=-1)


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search under way.

    Attributes:
        stream: Which scores.
        wanted: How many are still to be selected below those above `prefix`.
        prefix: Leading bits that are known.
        value: Bits of the k-th score, once known; then the search is over places.
    """

    stream: int
    wanted: int
    prefix: int = 0
    value: int | None = None
    place: int | None = None


def _bits_of(scores: Any, num_bits: int) -> Any:
    """Return non-negative floats as integers of the same order, in int64."""
    xp = array_namespace(scores)
    if num_bits == 64:
        return wide(scores).view(xp.int64)
    return xp.astype(scores.view(xp.int32), xp.int64)


def _count(values: Any) -> Any:
    xp = array_namespace(values)
    counts = values.bincount(minlength=BINS) if is_torch_array(values) else np.bincount(values, minlength=BINS)
    return xp.astype(counts, xp.int32)


def digit_counts(
    tile: Tile,
    scores: Scores,
    arguments: tuple[Any, ...],
    searches: tuple[Search, ...],
    found: int,
    score_bits: int,
    place_bits: int,
) -> Any:
    """Return how often each search's next digit has each value, (searches, BINS), and the bits of a score beside.

    Args:
        found: How many leading bits are known.
        score_bits: 64 to compare scores in float64, 32 in float32.
        place_bits: 0 while scores are searched; then how many bits a place has.
    """
    streams = scores(tile, *arguments)
    xp = array_namespace(streams[0])
    stored_bits = 64 if streams[0].dtype == xp.float64 else 32
    rest = (place_bits or score_bits) - found
    rows = []
    for search in searches:
        if stored_bits > score_bits:  # the histogram was of too few bits: the search starts again
            rows.append(xp.zeros(BINS, dtype=xp.int32, device=streams[0].device))
            continue
        bits = _bits_of(streams[search.stream], score_bits)
        if place_bits:
            places = xp.arange(tile.start, tile.start + bits.shape[0], dtype=xp.int64, device=bits.device)
            bits = places[bits == search.value]
        if found:
            bits = bits[(bits >> rest) == search.prefix]
        digit = min(DIGIT, rest)
        rows.append(_count((bits >> (rest - digit)) & ((1 << digit) - 1)))
    last = xp.full((len(rows), 1), stored_bits, dtype=xp.int32, device=rows[0].device)
    return xp.concat([xp.stack(rows), last], axis=1)


def _joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Return the counts of several pieces as those of one tile."""
    counts = np.stack([piece[:, :-1] for piece in pieces]).sum(axis=0, dtype=np.int32)
    return np.concatenate([counts, pieces[0][:, -1:]], axis=1)


def _total(tiles: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    counts = np.stack([tile[:, :-1] for tile in tiles]).sum(axis=0, dtype=np.int64)
    return counts, max(int(tile[0, -1]) for tile in tiles)


def _descend(search: Search, counts: np.ndarray, digit: int, *, from_top: bool) -> Search:
    """Return the search with one more digit known: the bin in which the running count reaches what is wanted."""
    order = counts[::-1] if from_top else counts
    running = np.cumsum(order)
    at = int(np.searchsorted(running, search.wanted))
    before = int(running[at - 1]) if at else 0
    value = len(counts) - 1 - at if from_top else at
    return replace(search, wanted=search.wanted - before, prefix=(search.prefix << digit) | value)


def find_cuts(
    scores: Scores, arguments: tuple[Any, ...], wanted: Sequence[tuple[int, int]], num_elements: int
) -> Generator[Pass, Any, list[Cut]]:
    """Return where the `count` largest scores of a stream end, for each (stream, count), count in 0 … num_elements.

    Over several tensors that share a reduction the places are those within each tensor, so that ties at the cut may
    make the selection smaller than asked for by less than the number of tensors.
    """
    cuts: list[Cut] = [NOTHING if count <= 0 else EVERYTHING for _, count in wanted]
    open_cuts = [i for i, (_, count) in enumerate(wanted) if 0 < count < num_elements]
    if not open_cuts:
        return cuts
    searches = [Search(stream=wanted[i][0], wanted=wanted[i][1]) for i in open_cuts]
    found, num_bits, last = 0, 32, np.zeros((0, 0))
    while found < num_bits:
        call = (scores, arguments, tuple(searches), found, num_bits, 0)
        last, widest = yield Pass(function=digit_counts, arguments=call, combine=_total, join=_joined)
        if widest > num_bits:  # some tensor is stored in float64: once more, with all in float64
            num_bits = widest
            continue
        digit = min(DIGIT, num_bits - found)
        searches = [_descend(s, last[i, : 1 << digit], digit, from_top=True) for i, s in enumerate(searches)]
        found += digit
    digit = num_bits % DIGIT or DIGIT
    ties = [int(last[i, search.prefix & ((1 << digit) - 1)]) for i, search in enumerate(searches)]
    searches = [replace(search, value=search.prefix, prefix=0) for search in searches]
    partial = [i for i, search in enumerate(searches) if search.wanted < ties[i]]
    if partial:
        tied = yield from _find_places(scores, arguments, [searches[i] for i in partial], num_bits, num_elements)
        for i, search in zip(partial, tied, strict=True):
            searches[i] = search
    for i, search in zip(open_cuts, searches, strict=True):
        place = num_elements if search.place is None else search.place
        cuts[i] = Cut(value=_float(search.value, num_bits), place=place, wide=num_bits == 64)
    return cuts


def _find_places(
    scores: Scores, arguments: tuple[Any, ...], searches: list[Search], score_bits: int, num_elements: int
) -> Generator[Pass, Any, list[Search]]:
    """Return the searches with the place of the last tie that is to be selected."""
    place_bits, found, several = max(1, (num_elements - 1).bit_length()), 0, False
    while found < place_bits:
        call = (scores, arguments, tuple(searches), found, score_bits, place_bits)
        counts, _ = yield Pass(function=digit_counts, arguments=call, combine=_total, join=_joined)
        digit = min(DIGIT, place_bits - found)
        searches = [_descend(s, counts[i, : 1 << digit], digit, from_top=False) for i, s in enumerate(searches)]
        found += digit
        several = any(counts[i, s.prefix & ((1 << digit) - 1)] > s.wanted for i, s in enumerate(searches))
    # Where several tensors have a tie at the last place and not all are wanted, none of them is.
    return [replace(search, place=search.prefix - several) for search in searches]


def _float(bits: int | None, num_bits: int) -> float:
    kind = (np.uint64, np.float64) if num_bits == 64 else (np.uint32, np.float32)
    return float(np.array(bits, kind[0]).view(kind[1]))
