"""Each CPU kernel gives the bits of the definition that it stands in for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sculpt.fusion.backend import NumpyBackend
from sculpt.fusion.kernels import kernel_for
from sculpt.fusion.methods import adadare, dare, task_arithmetic
from sculpt.fusion.methods.method import Map, Pass
from sculpt.fusion.random import Key
from sculpt.fusion.tile import RawTile, RootCurvature

BFLOAT16, FLOAT16, FLOAT32 = (np.dtype(found) for found in (ml_dtypes.bfloat16, np.float16, np.float32))
SIZES = (1, 4095, 4096, 4097, 100_000)
DTYPES = [
    pytest.param((BFLOAT16, BFLOAT16, BFLOAT16), id="bfloat16"),
    pytest.param((FLOAT16, FLOAT16, FLOAT16), id="float16"),
    pytest.param((FLOAT32, FLOAT32, FLOAT32), id="float32"),
    pytest.param((BFLOAT16, FLOAT16, FLOAT32), id="mixed"),
]
LAYOUTS = [
    pytest.param(None, id="no-curvature"),
    pytest.param((100, 2048), id="columns"),
    pytest.param((64, 1), id="rows"),
    pytest.param((1, 7), id="own"),
    pytest.param((3, 37), id="ragged"),
]
START = 5 * 4096

Dtypes = tuple[np.dtype, np.dtype, np.dtype]


def make_tile(dtypes: Dtypes, size: int, layout: tuple[int, int] | None = None, start: int = START) -> RawTile:
    """Return a tile with a share of zero deltas, of huge and of tiny ones."""
    rng = np.random.default_rng(size)
    base = (rng.standard_normal(size) * 0.02).astype(dtypes[0])
    delta = rng.standard_normal(size) * rng.choice([0.0, 1e-3, 1e-3, 1e-3, 1e-6, 0.1], size)
    tuned = (base.astype(np.float32) + delta.astype(np.float32)).astype(dtypes[1])
    root = None
    if layout is not None:
        repeat, inner = layout
        outer = -(-(start + size) // (repeat * inner))
        values = np.exp(rng.standard_normal(outer * inner)).astype(np.float32) + 1
        root = RootCurvature(values=values, repeat=repeat, inner=inner)
    return RawTile(start=start, base=base, tuned=(tuned,), keys=(Key(low=2**32 - 999, high=0xDEADBEEF),), root=root)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays are equal bit for bit, a negative zero told from a zero."""
    return one.dtype == other.dtype and np.array_equal(one.view(np.uint8), other.view(np.uint8))


def check_pass(tile: RawTile, function: Callable[..., Any], *arguments: Any) -> None:
    kernel = kernel_for(function, tile)
    assert kernel is not None
    expected = NumpyBackend().run_pass(tile, Pass(function=function, arguments=arguments))
    assert same_bits(kernel(tile, *arguments), expected)


def check_map(tile: RawTile, dtype: np.dtype, function: Callable[..., Any], *arguments: Any) -> None:
    expected, found = np.empty(len(tile.base), dtype), np.empty(len(tile.base), dtype)
    kernel = kernel_for(function, tile, found)
    assert kernel is not None
    rows = NumpyBackend().run_map(tile, Map(function=function, arguments=arguments), expected)
    assert same_bits(kernel(tile, found, *arguments), rows)
    assert same_bits(found, expected)


def level(tile: RawTile, sparsity: float) -> float:
    """Return the c of the closed form; something large at sparsity 0."""
    decoded = tile.decode()
    keep = (1 - sparsity) * len(tile.base) or 1e-3
    total = float(adadare.scores(decoded).sum()) or 1.0
    return float(np.float32(keep / total))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_adadare_kernels_give_the_bits_of_their_definitions(
    dtypes: Dtypes, size: int, layout: tuple[int, int] | None
) -> None:
    tile = make_tile(dtypes, size, layout)
    check_pass(tile, adadare.score_sums)
    for sparsity in (0.0, 0.5, 0.9, 1.0):
        c = level(tile, sparsity)
        check_pass(tile, adadare.clipped_sums, c)
        for gamma in (0.5, 1.0):
            check_map(tile, dtypes[2], adadare.drop_and_rescale, c, gamma)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_dare_and_task_arithmetic_kernels_give_the_bits_of_their_definitions(dtypes: Dtypes, size: int) -> None:
    tile = make_tile(dtypes, size)
    for keep in (1e-6, 0.1, 0.5, 1 - 1e-9):
        for scale in (0.5, 1.0):
            check_map(tile, dtypes[2], dare.drop_and_rescale, keep, scale)
    for scale in (0.0, 0.3, 1.0, 2.5):
        check_map(tile, dtypes[2], task_arithmetic.add_scaled, scale)


def test_kernels_round_every_float16_and_bfloat16_as_numpy_does() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    for dtype in (FLOAT16, BFLOAT16):
        with np.errstate(all="ignore"):
            wide = every.view(dtype).astype(np.float32)
            wide = wide[np.isfinite(wide)]
            stored = wide.astype(dtype)
            between = np.concatenate([wide, np.nextafter(wide, np.inf), (wide + np.roll(wide, 1)) / 2, wide * 1.001])
        exact = between[np.isfinite(between)].astype(np.float32)
        for tuned in (stored, exact):
            base = np.zeros(len(tuned), tuned.dtype)
            keys = (Key(low=0, high=0),)
            check_map(
                RawTile(start=0, base=base, tuned=(tuned,), keys=keys, root=None),
                dtype,
                task_arithmetic.add_scaled,
                1.0,
            )


@pytest.mark.parametrize("start", [0, 4096 * 7, 2**32 - 4096, 2**32, 2**40])
def test_masks_follow_the_flat_index_beyond_32_bits(start: int) -> None:
    tile = make_tile((BFLOAT16, BFLOAT16, BFLOAT16), 5000, start=start)
    check_map(tile, BFLOAT16, dare.drop_and_rescale, 0.5, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_inputs_show_in_the_figures(bad: float) -> None:
    for side in range(2):
        tile = make_tile((FLOAT16, FLOAT16, FLOAT16), 5000)
        (tile.base if side == 0 else tile.tuned[0])[4321] = bad
        for function, arguments in ((adadare.drop_and_rescale, (10.0, 0.5)), (task_arithmetic.add_scaled, (1.0,))):
            out = np.empty(5000, np.float16)
            kernel = kernel_for(function, tile, out)
            assert kernel is not None
            assert not np.isfinite(kernel(tile, out, *arguments)[3]).all()


def test_a_wider_dtype_has_no_kernel() -> None:
    float64 = np.dtype(np.float64)
    assert kernel_for(adadare.score_sums, make_tile((float64, BFLOAT16, BFLOAT16), 10)) is None
    tile = make_tile((BFLOAT16, BFLOAT16, BFLOAT16), 10)
    assert kernel_for(dare.drop_and_rescale, tile, np.empty(10, np.float64)) is None
