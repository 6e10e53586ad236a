"""The k-th largest by digits, against sorting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sculpt.fusion.arithmetic.ranks import Cut, find_cuts
from sculpt.fusion.arithmetic.tile import Tile
from sculpt.fusion.transforms.trim import magnitudes


def tiles(values: np.ndarray, size: int) -> list[Tile]:
    """Return tiles in which the deltas are these values."""
    zeros = np.zeros_like(values)
    return [
        Tile(start=i, base=zeros[i : i + size], tuned=(values[i : i + size],), keys=(), root=None)
        for i in range(0, len(values), size)
    ]


def cuts_of(pieces: Sequence[Tile], counts: Sequence[int], total: int) -> list[Cut]:
    search = find_cuts(magnitudes, (), [(0, count) for count in counts], total)
    value: Any = None
    try:
        while True:
            wanted = search.send(value)
            value = wanted.combine([wanted.function(piece, *wanted.arguments) for piece in pieces])
    except StopIteration as end:
        return end.value


def selected(values: np.ndarray, count: int, size: int = 7) -> np.ndarray:
    [cut] = cuts_of(tiles(values, size), [count], len(values))
    return cut.selects(np.abs(values), 0)


def sorted_selection(values: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(-np.abs(values), kind="stable")
    found = np.zeros(len(values), bool)
    found[order[:count]] = True
    return found


floats = st.floats(allow_nan=False, allow_infinity=False, width=32)
few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 0.5, -0.5])


@settings(max_examples=150, deadline=None)
@given(st.lists(floats | few_values, min_size=1, max_size=60), st.data())
def test_the_selection_is_that_of_a_stable_sort(values: list[float], data: st.DataObject) -> None:
    array = np.array(values, np.float32)
    count = data.draw(st.integers(0, len(values)))
    size = data.draw(st.integers(1, len(values)))
    np.testing.assert_array_equal(selected(array, count, size), sorted_selection(array, count))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.data())
def test_float64_is_ranked_in_full(values: list[float], data: st.DataObject) -> None:
    array = np.array(values)
    count = data.draw(st.integers(0, len(values)))
    np.testing.assert_array_equal(selected(array, count), sorted_selection(array, count))


@pytest.mark.parametrize("count", [0, 1, 3, 4096, 4999, 5000])
def test_of_equal_elements_the_first_are_selected(count: int) -> None:
    found = selected(np.full(5000, 0.25, np.float32), count, size=999)
    assert found[:count].all()
    assert not found[count:].any()


def test_several_cuts_are_found_at_once() -> None:
    values = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    counts = [1, 10, 1500, 2999]
    for cut, count in zip(cuts_of(tiles(values, 512), counts, 3000), counts, strict=True):
        np.testing.assert_array_equal(cut.selects(np.abs(values), 0), sorted_selection(values, count))


def test_over_several_tensors_the_count_is_met_up_to_ties() -> None:
    rng = np.random.default_rng(1)
    tensors = [rng.standard_normal(n).astype(np.float32) for n in (700, 300, 900)]
    pieces = [tile for tensor in tensors for tile in tiles(tensor, 256)]
    [cut] = cuts_of(pieces, [800], 1900)
    assert sum(int(cut.selects(np.abs(t), 0).sum()) for t in tensors) == 800
    tied = [np.ones(10, np.float32), np.ones(10, np.float32), np.ones(10, np.float32)]
    [cut] = cuts_of([tile for tensor in tied for tile in tiles(tensor, 4)], [20], 30)
    assert 20 - 3 < sum(int(cut.selects(np.abs(t), 0).sum()) for t in tied) <= 20
