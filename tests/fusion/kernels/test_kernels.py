"""Each CPU kernel gives the bits of the definition that it stands in for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import sculpt
from hypothesis import given, settings
from hypothesis import strategies as st
from sculpt.fusion.arithmetic.passes import Map, Pass, run_on
from sculpt.fusion.arithmetic.random import Key
from sculpt.fusion.arithmetic.ranks import EVERYTHING, NOTHING, Cut, Search, digit_counts
from sculpt.fusion.arithmetic.tile import RawTile
from sculpt.fusion.kernels import KERNELS
from sculpt.fusion.methods import METHODS, Magnitude, Method, Ties, adadare, dare
from sculpt.fusion.run.backend import Backend, KernelBackend, NumpyBackend
from sculpt.fusion.transforms.bernoulli import Drawn, bernoulli
from sculpt.fusion.transforms.chain import Chain, merge_kept
from sculpt.fusion.transforms.merge import Merging, elect, total
from sculpt.fusion.transforms.scale import add_scaled, add_weighted, scale
from sculpt.fusion.transforms.trim import Within, band, saliencies, trim

from .tiles import BFLOAT16, DTYPES, FLOAT16, FLOAT32, LAYOUTS, SIZES, START, Dtypes, make_tile, same_bits


def check_pass(tile: RawTile, function: Callable[..., Any], *arguments: Any) -> None:
    kernel = KERNELS.find(function, arguments, tile)
    assert kernel is not None
    expected = NumpyBackend().run_pass(tile, Pass(function=function, arguments=arguments))
    assert same_bits(kernel(tile, *arguments), expected)


def check_map(tile: RawTile, dtype: np.dtype, function: Callable[..., Any], *arguments: Any) -> None:
    expected, found = np.empty(len(tile.base), dtype), np.empty(len(tile.base), dtype)
    kernel = KERNELS.find(function, arguments, tile, found)
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
        for strength in (0.5, 1.0):
            check_map(tile, dtypes[2], dare.drop_and_rescale, keep, strength)
    for strength in (0.0, 0.3, 1.0, 2.5):
        check_map(tile, dtypes[2], add_scaled, strength)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_saliency_kernels_give_the_bits_of_their_definitions(
    dtypes: Dtypes, size: int, layout: tuple[int, int] | None
) -> None:
    tile = make_tile(dtypes, size, layout)
    ordered = np.sort(adadare.scores(tile.decode()))
    for k in (0, size // 2, size - 1):
        for place in (START - 1, START + size // 2, START + size):
            for strength in (0.5, 1.0):
                cut = Cut(value=float(ordered[k]), place=place)
                kept = Within(ranges=((cut, NOTHING),), scores=saliencies, factors=(1.0,))
                check_map(tile, dtypes[2], merge_kept, kept, total(1.0), strength)
    value = int(ordered[size // 2].view(np.int32))
    for found, num_bits in ((0, 32), (11, 32), (22, 32), (0, 0)):
        prefix = value >> (32 - found) if num_bits else 0
        search = Search(stream=0, wanted=1, prefix=prefix, value=None if num_bits else value)
        place_bits = 0 if num_bits else 20
        check_pass(tile, digit_counts, saliencies, (), (search,), found, 32, place_bits)


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
                add_scaled,
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
        for function, arguments in ((adadare.drop_and_rescale, (10.0, 0.5)), (add_scaled, (1.0,))):
            out = np.empty(5000, np.float16)
            kernel = KERNELS.find(function, arguments, tile, out)
            assert kernel is not None
            assert not np.isfinite(kernel(tile, out, *arguments)[3]).all()


def test_a_wider_dtype_has_no_kernel() -> None:
    float64 = np.dtype(np.float64)
    assert KERNELS.find(adadare.score_sums, (), make_tile((float64, BFLOAT16, BFLOAT16), 10)) is None
    tile = make_tile((BFLOAT16, BFLOAT16, BFLOAT16), 10)
    assert KERNELS.find(dare.drop_and_rescale, (0.5, 1.0), tile, np.empty(10, np.float64)) is None


MERGINGS = [
    Merging(weights=(1.0, 0.5, -0.3)),
    Merging(weights=(0.0, 1.0, 0.0)),
    Merging(weights=(1.0, 1.0, 2.0), election="weighted", normalize=True),
    Merging(weights=(0.7, -0.5, 0.1), election="weighted"),
    Merging(weights=(1.0, 1.0, 0.0), election="unweighted", normalize=True, by_number=True),
    Merging(weights=(0.7, 0.5, 0.1), election="unweighted", normalize=True),
]
CUT = Cut(value=float(np.float32(0.0009765625)), place=START + 4500)  # a delta that bfloat16 often has


@pytest.mark.parametrize("num_models", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4097, 100_000])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_merging_kernels_give_the_bits_of_their_definitions(dtypes: Dtypes, size: int, num_models: int) -> None:
    tile = make_tile(dtypes, size, num_models=num_models)
    for full, strength in product(MERGINGS, (0.7, 1.0)):
        merging = Merging(**{**vars(full), "weights": full.weights[:num_models]})
        for ranges in ((CUT, NOTHING), (EVERYTHING, CUT)), ((EVERYTHING, NOTHING), (CUT, NOTHING)):
            kept = Within(ranges=(*ranges, ranges[0])[:num_models], factors=(1.0, 2.5, 1.0)[:num_models])
            check_map(tile, dtypes[2], merge_kept, kept, merging, strength)
        drawn = Drawn(keeps=(0.5, 0.1, 1 - 1e-9)[:num_models], factors=(1.0, 10.0, 1.0)[:num_models])
        check_map(tile, dtypes[2], merge_kept, drawn, merging, strength)


@pytest.mark.parametrize("coefficients", [(1.0, 0.5), (0.0, 1.0), (0.0, 0.3), (0.0, 0.0), (-1.0, 2.0)])
def test_adding_several_models_gives_the_bits_of_its_definition(coefficients: tuple[float, ...]) -> None:
    tile = make_tile((BFLOAT16, BFLOAT16, BFLOAT16), 70_000, num_models=2)
    check_map(tile, BFLOAT16, add_weighted, coefficients)


def fuse_on(backend: Backend, method: Method, whole: RawTile) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return what a method makes of a tensor, tile by tile, and the figures of each tile."""
    size = backend.tile_elements
    tiles = [
        RawTile(
            start=first,
            base=whole.base[first : first + size],
            tuned=tuple(array[first : first + size] for array in whole.tuned),
            keys=whole.keys,
            root=whole.root,
        )
        for first in range(0, len(whole.base), size)
    ]
    reduction, value = method.reduce(len(whole.base)), None
    try:
        while True:
            wanted = reduction.send(value)
            value = wanted.combine([backend.run_pass(tile, wanted) for tile in tiles])
    except StopIteration as end:
        found = end.value
    out = np.empty_like(whole.base)
    rows = [backend.run_map(tile, found, out[tile.start : tile.start + len(tile.base)]) for tile in tiles]
    return out, rows


@settings(max_examples=25, deadline=None)
@given(
    density=st.sampled_from([0.0, 1e-5, 0.1, 0.5, 0.999, 1.0]),
    size=st.sampled_from([1, 2, 4096, 20_000, 300_000]),
    num_models=st.integers(1, 3),
    dtype=st.sampled_from([BFLOAT16, FLOAT16, FLOAT32]),
    tile=st.sampled_from([4096, 1 << 15, 1 << 20]),
    unweighted=st.booleans(),
)
def test_ties_by_kernels_and_by_definition_agree_to_the_bit(
    density: float, size: int, num_models: int, dtype: np.dtype, tile: int, unweighted: bool
) -> None:
    whole = make_tile((dtype, dtype, dtype), size, start=0, num_models=num_models)
    method = Ties(
        density=density, weights=(1.0, 0.5, 2.0)[:num_models], election="unweighted" if unweighted else "weighted"
    )
    expected, _ = fuse_on(NumpyBackend(tile_elements=1 << 16), method, whole)
    found, _ = fuse_on(KernelBackend(tile_elements=tile), method, whole)
    assert same_bits(found, expected)


def test_ties_of_one_model_is_its_magnitude_trim() -> None:
    whole = make_tile((BFLOAT16, BFLOAT16, BFLOAT16), 300_000, start=0)
    for strength in (1.0, 0.5):
        ties, _ = fuse_on(KernelBackend(), Ties(density=0.1, scale=strength), whole)
        trimmed, _ = fuse_on(KernelBackend(), Magnitude(density=0.1, scale=strength), whole)
        assert same_bits(ties, trimmed)
        order = np.argsort(-np.abs(whole.tuned[0].astype(np.float32) - whole.base.astype(np.float32)), kind="stable")
        changed = np.flatnonzero(ties.view(np.uint16) != whole.base.view(np.uint16))
        assert set(changed) <= set(order[:30_000])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_gives_the_same_bits_by_kernels_and_without(name: str) -> None:
    method = METHODS[name]()
    num_models, _ = method.model_range
    whole = make_tile((BFLOAT16, BFLOAT16, BFLOAT16), 70_000, start=0, num_models=num_models)
    base, *tuned = (array.reshape(200, 350) for array in (whole.base, *whole.tuned))
    expected = sculpt.apply(method, base, tuned, backend=NumpyBackend(tile_elements=1 << 14))
    found = sculpt.apply(method, base, tuned, backend=KernelBackend(tile_elements=1 << 15))
    assert same_bits(found, expected)


@pytest.mark.parametrize(
    "chain",
    [
        band((0.5, 0.3), 0.05, rescale="l1") | elect((1.0, 2.0), "unweighted", normalize=False) | scale(0.7),
        bernoulli((0.5, 0.0), rescale="none") | total((1.0, 2.0), normalize=True) | scale(1.5),
        trim(0.1) | elect((0.0, 1.0)),
    ],
)
def test_a_chain_of_parts_that_have_a_kernel_has_one_in_whatever_method_it_is(chain: Chain) -> None:
    tile = make_tile((BFLOAT16, BFLOAT16, BFLOAT16), 20_000, start=0, num_models=2)
    found = run_on(tile.decode(), chain.reduce(20_000))
    check_map(tile, BFLOAT16, found.function, *found.arguments)
