"""Transforms by themselves, outside any method."""

from __future__ import annotations

import numpy as np
import pytest
from sculpt.fusion.arithmetic.passes import run_on
from sculpt.fusion.arithmetic.tile import Tile
from sculpt.fusion.transforms.chain import Chain
from sculpt.fusion.transforms.merge import elect, total
from sculpt.fusion.transforms.scale import scale
from sculpt.fusion.transforms.trim import band, trim


def tile_of(*deltas: list[float]) -> Tile:
    """Return a tile whose base is zero, so that the tuned models are the deltas."""
    tuned = tuple(np.array(delta, np.float32) for delta in deltas)
    return Tile(start=0, base=np.zeros_like(tuned[0]), tuned=tuned, keys=(), root=None)


@pytest.mark.parametrize(
    ("density", "expected"),
    [(0.5, [0, -3, 2, 0, 0, 0, 3]), (0.1, [0] * 7), (1.0, [1, -3, 2, 2, -2, 0, 3])],
)
def test_trim_keeps_an_exact_number_and_the_first_of_equals(density: float, expected: list[float]) -> None:
    tile = tile_of([1, -3, 2, 2, -2, 0, 3])
    assert run_on(tile, trim(density).settle(1, 7)).deltas(tile)[0].tolist() == expected


def test_rescaling_gives_what_is_kept_the_l1_norm_of_all() -> None:
    tile = tile_of([1, -3, 2, 2], [4, 0, 0, 0])
    kept = run_on(tile, band(0.5, 0.25, rescale="l1").settle(2, 4))
    assert [delta.tolist() for delta in kept.deltas(tile)] == [[0, 0, 2, 2], [0, 0, 0, 0]]
    assert kept.factors == (2.0, 1.0)  # nothing is left of the second model, and nothing can make it more


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (trim(0.5) | total((1.0, 2.0)) | scale(0.5), [3.5, -1.5, 4, 0]),
        (trim(0.5) | elect((1.0, 1.0)) | scale(2.0), [5, -6, 8, 0]),
        (trim(0.5) | elect((1.0, 1.0), normalize=False), [5, -3, 4, 0]),
        (trim(0.5) | elect((2.0, 1.0), "unweighted"), [4, -6, 4, 0]),
    ],
)
def test_a_chain_keeps_merges_and_adds(chain: Chain, expected: list[float]) -> None:
    tile = tile_of([3, -3, 1, 1], [2, 1, 4, 0])
    found = run_on(tile, chain.reduce(4))
    assert found.function(tile, *found.arguments).values.tolist() == expected


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (trim(0.5) | total(1.0) | scale(0.0), "base"),
        (trim(0.0) | total(1.0), "base"),
        (trim(1.0) | elect((0.0, 0.0)), "base"),
        (trim(1.0) | total(0.5) | scale(2.0), "tuned"),
        (trim(1.0) | elect((1.0, 0.0)), "tuned"),
        (trim(1.0) | elect((0.0, 1.0)), None),
        (trim(0.9) | total(1.0), None),
    ],
)
def test_a_chain_knows_which_input_it_leaves_as_it_is(chain: Chain, expected: str | None) -> None:
    assert chain.identity == expected
