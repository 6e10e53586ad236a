"""A tensor put together from boxes: every range of it, however it was cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sculpt.fusion.checkpoint.layouts.boxes import Box, gather, tile


def box(whole: np.ndarray, offsets: tuple[int, ...], sizes: tuple[int, ...], before: int = 0) -> Box:
    own = whole[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))].reshape(-1)
    held = np.concatenate([np.full(before, -1, whole.dtype), own])
    return Box(offsets=offsets, sizes=sizes, read=lambda start, stop: held[start:stop], first=before)


def cut(whole: np.ndarray, cuts: list[list[int]]) -> list[Box]:
    """Return a grid of boxes, cut along each axis at these places."""
    edges = [sorted({0, size, *(c for c in own if c < size)}) for own, size in zip(cuts, whole.shape, strict=True)]
    grid = np.stack(np.meshgrid(*(range(len(e) - 1) for e in edges), indexing="ij"), -1).reshape(-1, whole.ndim)
    return [
        box(
            whole,
            tuple(e[k] for e, k in zip(edges, place, strict=True)),
            tuple(e[k + 1] - e[k] for e, k in zip(edges, place, strict=True)),
            before=int(place.sum()),
        )
        for place in grid
    ]


@settings(deadline=None)
@given(st.data())
def test_any_range_of_any_cut_is_what_was_cut(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    boxes = cut(whole, [data.draw(st.lists(st.integers(1, 4), max_size=2)) for _ in shape])
    boxes = data.draw(st.permutations(boxes))
    start = data.draw(st.integers(0, whole.size))
    stop = data.draw(st.integers(start, whole.size))
    assert tile(shape, boxes)
    assert gather(shape, boxes, start, stop, whole.dtype).tolist() == whole.reshape(-1)[start:stop].tolist()
    if len(boxes) > 1:
        assert not tile(shape, boxes[1:])
        assert not tile(shape, [*boxes[1:], boxes[1]])


def test_a_scalar_is_a_box_of_no_axes() -> None:
    whole = np.array(3.0, np.float32)
    assert gather((), [box(whole, (), ())], 0, 1, whole.dtype).tolist() == [3.0]


@pytest.mark.parametrize(
    "places", [[((0, 0), (2, 2)), ((1, 1), (2, 2))], [((0, 0), (4, 2))], [((0,), (6,))], [((0, 0), (2, 3), (1, 0))]]
)
def test_boxes_that_overlap_or_stick_out_are_no_whole(places: list[tuple[tuple[int, ...], ...]]) -> None:
    whole = np.zeros((8, 8), np.float32)
    assert not tile((2, 4), [Box(offsets=p[0], sizes=p[1], read=lambda a, b: whole.reshape(-1)[a:b]) for p in places])
