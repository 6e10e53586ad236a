"""A tensor in boxes: each holds the elements of a part of its shape, and any range of the whole is put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

ReadPart: TypeAlias = Callable[[int, int], np.ndarray]  # elements `start … stop − 1` of a box's own, flattened


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of a tensor.

    Attributes:
        offsets: Of its first element in the tensor, by axis.
        sizes: Its shape.
        read: Its elements.
        first: Which of those that `read` gives is its first.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    read: ReadPart
    first: int = 0

    def within(self, index: int) -> Box | None:
        """Return the part of a box that lies at an index of the first axis, without that axis; None where none does."""
        own = index - self.offsets[0]
        if not 0 <= own < self.sizes[0]:
            return None
        first = self.first + own * prod(self.sizes[1:])
        return Box(offsets=self.offsets[1:], sizes=self.sizes[1:], read=self.read, first=first)


def tile(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Return whether boxes lie within a shape and hold each of its elements once."""
    full = [box for box in boxes if prod(box.sizes)]
    for box in full:
        if len(box.sizes) != len(shape) or len(box.offsets) != len(shape):
            return False
        if any(o < 0 or s < 1 or o + s > size for o, s, size in zip(box.offsets, box.sizes, shape, strict=True)):
            return False
    if sum(prod(box.sizes) for box in full) != prod(shape):
        return False
    if len(full) < 2:
        return True
    corners = np.array([[*box.offsets, *(o + s for o, s in zip(box.offsets, box.sizes, strict=True))] for box in full])
    starts, stops = corners[:, : len(shape)], corners[:, len(shape) :]
    cut = np.flatnonzero((starts != starts[0]).any(0) | (stops != stops[0]).any(0))
    if len(cut) == 1:  # along one axis, as nearly always
        order = np.argsort(starts[:, cut[0]])
        return bool((starts[order, cut[0]][1:] >= stops[order, cut[0]][:-1]).all())
    return not any(
        ((starts[k] < stops[k + 1 :]) & (starts[k + 1 :] < stops[k])).all(1).any() for k in range(len(full) - 1)
    )


def gather(shape: tuple[int, ...], boxes: Sequence[Box], start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    """Return elements `start … stop − 1` of a flattened tensor: a view where one box holds them in a row."""
    width = prod(shape[1:])
    if start >= stop:
        return np.empty(0, dtype)
    if not shape:
        return boxes[0].read(boxes[0].first, boxes[0].first + 1)
    row, last = start // width, (stop - 1) // width
    if row == last and len(shape) > 1:
        inner = [found for box in boxes if (found := box.within(row)) is not None]
        return gather(shape[1:], inner, start - row * width, stop - row * width, dtype)
    whole = next((box for box in boxes if box.sizes[1:] == shape[1:] and _holds(box, row, last + 1)), None)
    if whole is not None:
        skipped = whole.first - whole.offsets[0] * width
        return whole.read(skipped + start, skipped + stop)
    pieces = []
    if start % width:  # a part of a row before whole rows
        row += 1
        pieces.append(gather(shape, boxes, start, row * width, dtype))
    if stop % width:
        pieces.append(gather(shape, boxes, last * width, stop, dtype))
    end = stop // width
    if end > row:
        pieces.insert(len(pieces) - bool(stop % width), _rows(shape, boxes, row, end, dtype).reshape(-1))
    return np.concatenate(pieces)


def _holds(box: Box, row: int, end: int) -> bool:
    return box.offsets[0] <= row and end <= box.offsets[0] + box.sizes[0]


def _rows(shape: tuple[int, ...], boxes: Sequence[Box], row: int, end: int, dtype: np.dtype) -> np.ndarray:
    """Return whole rows, of the boxes that have some of each."""
    out = np.zeros((end - row, *shape[1:]), dtype)
    for box in boxes:
        first, last = max(row, box.offsets[0]), min(end, box.offsets[0] + box.sizes[0])
        if first >= last or not prod(box.sizes):
            continue
        width = prod(box.sizes[1:])
        begin = box.first + (first - box.offsets[0]) * width
        values = box.read(begin, begin + (last - first) * width).reshape(last - first, *box.sizes[1:])
        place = (slice(first - row, last - row), *(slice(o, o + s) for o, s in _spans(box)))
        out[place] = values
    return out


def _spans(box: Box) -> Sequence[tuple[int, int]]:
    return list(zip(box.offsets[1:], box.sizes[1:], strict=True))
