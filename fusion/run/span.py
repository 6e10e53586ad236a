"""Runs of a tensor's elements: what a thread works on at once."""

from __future__ import annotations

from dataclasses import dataclass

from ..arithmetic.random import SEGMENT


@dataclass(frozen=True, kw_only=True)
class Span:
    """Elements `start … stop − 1` of a tensor; bytes of one whose elements are less than a byte."""

    start: int
    stop: int


def spans(start: int, stop: int, tile_elements: int, grain: int = 1) -> list[Span]:
    """Cut elements into tiles of whole grains.

    None goes on past the grain that holds a multiple of 2³² elements, where the random key changes.
    """
    size, cuts = max(1, tile_elements // grain) * grain, []
    while start < stop:
        boundary = (start // SEGMENT + 1) * SEGMENT
        end = min(start + size, stop, -(-boundary // grain) * grain)
        cuts.append(Span(start=start, stop=end))
        start = end
    return cuts
