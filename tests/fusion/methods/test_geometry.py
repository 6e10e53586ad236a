"""Methods on the sphere, and others that weigh models by what they are, against their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sculpt.fusion.arithmetic.span import LinearSpan
from sculpt.fusion.methods import (
    ArceeFusion,
    Karcher,
    ModelStock,
    MultiSlerp,
    NearSwap,
    NuSlerp,
    Sce,
    Slerp,
)

Fuse = Callable[..., np.ndarray]
Models = Callable[..., list[np.ndarray]]
SHAPE = (20, 30)


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    theta = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta)


def far_models(seed: int, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(SHAPE) + 0.3 * k for k in range(count)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_slerp_is_the_arc_between_two_models(fuse: Fuse) -> None:
    a, b = far_models(0, 2)
    np.testing.assert_allclose(fuse(Slerp(t=0.3), a, b), slerp(a, b, 0.3), rtol=1e-12, atol=1e-14)


def test_slerp_of_nearly_parallel_models_is_linear(fuse: Fuse, models: Models) -> None:
    a, b = models(1, SHAPE, 1, np.float64)
    b = a + (b - a) * 0.01
    np.testing.assert_allclose(fuse(Slerp(t=0.3), a, b), 0.7 * a + 0.3 * b, rtol=1e-12)


def test_nuslerp_turns_deltas_around_the_base(fuse: Fuse) -> None:
    base, a, b = far_models(2, 3)
    expected = base + slerp(a - base, b - base, 0.75)
    np.testing.assert_allclose(fuse(NuSlerp(weights=(1, 3)), base, a, b), expected, rtol=1e-10)


@pytest.mark.parametrize(("vectors", "axis"), [("rows", 0), ("columns", 1)])
def test_nuslerp_may_turn_every_row_or_column_by_itself(vectors: str, axis: int, fuse: Fuse) -> None:
    a, b = far_models(3, 2)
    pairs = zip(np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0), strict=True)
    expected = np.stack([slerp(one, other, 0.5) for one, other in pairs], axis)
    method = NuSlerp(vectors=vectors, origin="zero")  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(fuse(method, a, b), expected, rtol=1e-10)


def test_multislerp_has_the_mean_direction_and_the_mean_norm(fuse: Fuse) -> None:
    base, *tuned = far_models(4, 4)
    weights = np.array([0.5, 0.3, 0.2])
    deltas = [t - base for t in tuned]
    direction = sum(w * d / np.linalg.norm(d) for w, d in zip(weights, deltas, strict=True))
    norm = sum(w * np.linalg.norm(d) for w, d in zip(weights, deltas, strict=True))
    expected = base + norm * direction / np.linalg.norm(direction)
    np.testing.assert_allclose(fuse(MultiSlerp(weights=(5, 3, 2)), base, *tuned), expected, rtol=1e-6)


def test_the_karcher_mean_has_no_pull_left(fuse: Fuse) -> None:
    models = far_models(5, 4)
    mean = fuse(Karcher(max_steps=100, tolerance=1e-12), *models)
    np.testing.assert_allclose(np.linalg.norm(mean), np.mean([np.linalg.norm(m) for m in models]), rtol=1e-9)
    unit = mean / np.linalg.norm(mean)
    pull = np.zeros(SHAPE)
    for model in models:
        other = model / np.linalg.norm(model)
        theta = np.arccos((unit * other).sum())
        pull += theta / np.sin(theta) * (other - np.cos(theta) * unit)
    assert np.linalg.norm(pull) < 1e-9


def test_the_karcher_mean_of_two_models_of_one_norm_is_their_slerp(fuse: Fuse) -> None:
    a, b = far_models(6, 2)
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(fuse(Karcher(tolerance=1e-12), a, b), slerp(a, b, 0.5), rtol=1e-9)


def test_angles_of_near_models_are_not_lost_in_rounding() -> None:
    rng = np.random.default_rng(7)
    base, delta = rng.standard_normal(1000), rng.standard_normal(1000)
    delta = 1e-7 * (delta - (delta @ base) / (base @ base) * base)
    span = LinearSpan.from_products(np.array([base @ base, base @ delta, delta @ delta]))
    expected = np.linalg.norm(delta) / np.linalg.norm(base)
    np.testing.assert_allclose(span.angle(span.base, span.tuned()[0]), expected, rtol=1e-9)


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_goes_as_far_as_the_angle_tells(filter_wise: bool, fuse: Fuse, models: Models) -> None:
    base, *tuned = models(8, SHAPE, 3, np.float64)
    tuned = [t + 0.01 for t in tuned]
    expected = np.empty(SHAPE)
    for rows in [[i] for i in range(SHAPE[0])] if filter_wise else [list(range(SHAPE[0]))]:
        deltas = [(t - base)[rows] for t in tuned]
        mean = np.mean([cosine(deltas[i], deltas[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
        ratio = 3 * mean / (1 + 2 * mean)
        expected[rows] = base[rows] + ratio * sum(deltas) / 3
    np.testing.assert_allclose(fuse(ModelStock(filter_wise=filter_wise), base, *tuned), expected, rtol=1e-9, atol=1e-12)


def test_opposite_deltas_leave_model_stock_at_the_base(fuse: Fuse, models: Models) -> None:
    base, tuned = models(9, SHAPE, 1, np.float64)
    found = fuse(ModelStock(), base, tuned, 2 * base - tuned)
    np.testing.assert_allclose(found, base, rtol=1e-12)


def test_nearswap_swaps_what_is_near_and_moves_the_rest_by_t(fuse: Fuse, models: Models) -> None:
    base, tuned = models(10, SHAPE, 1)
    found, delta = fuse(NearSwap(t=0.01), base, tuned), tuned - base
    near = np.abs(delta) <= np.float32(0.01)
    np.testing.assert_array_equal(found[near], tuned[near])
    np.testing.assert_allclose((found - base)[~near], 0.01 * np.sign(delta[~near]), atol=1e-7)


def test_sce_weighs_models_by_their_change_where_they_differ_most(fuse: Fuse, models: Models) -> None:
    base, *tuned = models(11, SHAPE, 3, np.float64)
    deltas = np.stack([t - base for t in tuned])
    variance = deltas.var(0)
    count = int(0.3 * (variance > 0).sum())
    chosen = variance >= np.sort(variance.ravel())[-count]
    deltas = deltas * chosen
    weights = (deltas**2).sum((1, 2))
    weights /= weights.sum()
    agree = np.sign(deltas) == np.where(deltas.sum(0) >= 0, 1, -1)
    total = (weights[:, None, None] * agree).sum(0)
    expected = base + (weights[:, None, None] * agree * deltas).sum(0) / np.where(total == 0, 1, total)
    np.testing.assert_allclose(fuse(Sce(density=0.3), base, *tuned), expected, rtol=1e-12)


def test_arcee_fusion_takes_what_stands_out_by_the_quartiles(fuse: Fuse) -> None:
    base, tuned = far_models(12, 2)
    tuned = base + 0.1 * (tuned - base) ** 3
    p, q = (np.exp(m) / np.exp(m).sum(1, keepdims=True) + 1e-8 for m in (tuned, base))
    importance = np.abs(tuned - base) * (p * np.log(p / q)).sum(1, keepdims=True)
    first, median, third = np.sort(importance.ravel())[[int(x * (base.size - 1)) for x in (0.25, 0.5, 0.75)]]
    expected = np.where(importance >= median + 1.5 * (third - first), tuned, base)
    found = fuse(ArceeFusion(), base, tuned)
    np.testing.assert_array_equal(found, expected)
    assert 0 < (found != base).sum() < base.size / 2
