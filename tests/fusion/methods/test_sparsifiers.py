"""What is kept: exactly how much, which of equals, and of one element, none, or all alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.errors import MethodError
from sculpt.fusion.methods import (
    METHODS,
    Breadcrumbs,
    BreadcrumbsTies,
    Dare,
    DareTies,
    Della,
    DellaLinear,
    Linear,
    Magnitude,
    Method,
    Saliency,
    Sce,
    TaskArithmetic,
)
from sculpt.fusion.transforms.magprune import keep_probability
from sculpt.fusion.transforms.trim import counts

from .conftest import fuse_array, models

Fuse = Callable[..., np.ndarray]
values = st.lists(st.sampled_from([0.0, 0.25, -0.25, 0.5, -1.0, 2.0, 3.0]), min_size=1, max_size=40)
fractions = st.floats(0, 1, allow_nan=False)


def moved_by(deltas: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a base of ones and a tuned model that differs by exactly these deltas."""
    base = np.ones(len(deltas), np.float32)
    return base, base + np.array(deltas, np.float32)


def top(scores: np.ndarray, count: int) -> np.ndarray:
    found = np.zeros(scores.size, bool)
    found[np.argsort(-scores, kind="stable")[:count]] = True
    return found


@settings(max_examples=80, deadline=None)
@given(values, fractions)
def test_magnitude_keeps_exactly_the_density_and_of_equals_the_first(deltas: list[float], density: float) -> None:
    base, tuned = moved_by(deltas)
    kept = top(np.abs(tuned - base), int(density * len(deltas)))
    np.testing.assert_array_equal(fuse_array(Magnitude(density=density), base, tuned), np.where(kept, tuned, base))


@settings(max_examples=80, deadline=None)
@given(values, fractions, st.integers(0, 2**32 - 1))
def test_saliency_keeps_exactly_the_density_by_curvature_and_delta(
    deltas: list[float], density: float, seed: int
) -> None:
    base, tuned = moved_by(deltas)
    squares = np.random.default_rng(seed).integers(0, 3, len(deltas)).astype(np.float64)
    scores = np.sqrt(2 * squares + 1).astype(np.float32) * np.abs(tuned - base)
    kept = top(scores, int(density * len(deltas)))
    found = fuse_array(Saliency(density=density), base, tuned, curvature=Curvature(terms=(squares,), num_tokens=1))
    np.testing.assert_array_equal(found, np.where(kept, tuned, base))


@settings(max_examples=80, deadline=None)
@given(values, fractions, fractions)
def test_breadcrumbs_keeps_the_density_between_the_smallest_and_the_outliers(
    deltas: list[float], density: float, gamma: float
) -> None:
    base, tuned = moved_by(deltas)
    reach, outliers = counts(len(deltas), density, gamma)
    scores = np.abs(tuned - base)
    kept = top(scores, reach) & ~top(scores, outliers)
    assert kept.sum() == int(density * len(deltas))
    assert outliers <= int(gamma * len(deltas))
    found = fuse_array(Breadcrumbs(density=density, gamma=gamma), base, tuned)
    np.testing.assert_array_equal(found, np.where(kept, tuned, base))


def test_breadcrumbs_without_outliers_is_the_magnitude_trim(fuse: Fuse) -> None:
    base, tuned = models(1, (50, 20), 1)
    trimmed = fuse(Magnitude(density=0.3), base, tuned)
    assert (trimmed != base).sum() == 300
    np.testing.assert_array_equal(fuse(Breadcrumbs(density=0.3, gamma=0), base, tuned), trimmed)
    np.testing.assert_array_equal(fuse(Breadcrumbs(density=0.3, gamma=0.0005), base, tuned), trimmed)


TRIMMED = [Magnitude(density=0.4), Breadcrumbs(density=0.4), BreadcrumbsTies(density=0.4), Saliency(density=0.4)]


@pytest.mark.parametrize("method", TRIMMED, ids=lambda method: method.name)
def test_of_equal_deltas_the_first_are_kept(method: Method, fuse: Fuse) -> None:
    base = np.ones(1000, np.float32)
    kept = fuse(method, base, base + 0.5) != base
    first = int(np.argmax(kept))
    assert kept[first : first + 400].all()
    assert kept.sum() == 400


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_one_element_is_a_model_or_between_them(method: str, fuse: Fuse) -> None:
    if METHODS[method].max_models == 0:
        pytest.skip("one model")
    num_tuned = max(1, METHODS[method].min_models, 2 if method == "nuslerp" else 1)
    base, tuned = np.full(1, 1.0, np.float32), np.full(1, 1.5, np.float32)
    found = float(fuse(METHODS[method](), base, *[tuned] * num_tuned)[0])
    assert 1.0 <= found <= 1.5 or found == pytest.approx(1 + 0.5 / 0.3)  # DELLA and DARE may rescale it


@pytest.mark.parametrize("sparsity", [0.2, 0.9, 0.999])
def test_dare_is_unbiased_and_keeps_supersets_at_lower_sparsity(sparsity: float, fuse: Fuse) -> None:
    base = np.zeros(100_000, np.float32)
    tuned = np.ones_like(base)
    found = fuse(Dare(sparsity=sparsity), base, tuned)
    kept = found != 0
    np.testing.assert_allclose(found[kept], 1 / (1 - sparsity), rtol=1e-6)
    deviation = np.sqrt(sparsity / (1 - sparsity) / base.size)
    assert abs(found.mean() - 1) < 4 * deviation
    assert (fuse(Dare(sparsity=sparsity / 2), base, tuned)[kept] != 0).all()


def test_models_have_draws_of_their_own(fuse: Fuse) -> None:
    base = np.zeros(10_000, np.float32)
    one, other = base + 1, base + 1
    found = fuse(Dare(sparsity=0.5, weights=(1, 3)), base, one, other)
    shares = [(found == value).mean() for value in (0, 2, 6, 8)]
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_della_keeps_by_rank_within_the_row(fuse: Fuse) -> None:
    rows, width = 4000, 5
    tuned = np.tile(np.array([3, -1, 5, 2, -4], np.float32), (rows, 1))
    base = np.zeros_like(tuned)
    found = fuse(DellaLinear(density=0.5, epsilon=0.4), base, tuned)
    expected = np.array([0.5, 0.1, 0.9, 0.3, 0.7])
    np.testing.assert_allclose((found != 0).mean(0), expected, atol=0.04)
    kept = found != 0
    np.testing.assert_allclose(found[kept], (tuned / expected)[kept], rtol=1e-5)
    q = keep_probability(np.abs(tuned).reshape(-1), width, 0.5, 0.4)
    np.testing.assert_allclose(q.reshape(rows, width)[0], expected, rtol=1e-6)


def test_a_window_that_leaves_zero_to_one_is_refused() -> None:
    with pytest.raises(MethodError, match=r"`density` of 0\.9 with an `epsilon`"):
        Della(density=0.9)
    with pytest.raises(MethodError, match="`density` must lie between 0 and 1, got 20") as caught:
        Magnitude(density=20)
    assert caught.value.hint == "did you mean 0.2?"


@pytest.mark.parametrize(
    ("method", "which"),
    [
        (TaskArithmetic(weights=(0, 1, 0)), 1),
        (Linear(weights=(0, 0, 0, 2)), 2),
        (Dare(sparsity=0, weights=(0, 0, 1)), 2),
        (DareTies(sparsity=0, weights=(1, 0, 0)), 0),
        (DareTies(sparsity=0, weights=(0, 0.5, 0)), 1),
        (Magnitude(density=1, scale=0.5, weights=(2, 0, 0)), 0),
        (Della(density=1, weights=(0, 0, 3)), 2),
        (Sce(density=1), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_one_model_of_weight_one_comes_back_bit_for_bit(
    method: Method, which: int | None, dtype: type, fuse: Fuse
) -> None:
    base, *tuned = models(2, (30, 40), 3, dtype)
    if which is None:
        tuned = tuned[:1]
    assert fuse(method, base, *tuned).tobytes() == tuned[which or 0].tobytes()


def test_ties_of_one_model_is_the_magnitude_trim(fuse: Fuse) -> None:
    base, tuned = models(3, (30, 40), 1)
    for scale in (1.0, 0.3):
        ties = METHODS["ties"](density=0.2, scale=scale)  # pyright: ignore[reportCallIssue]
        np.testing.assert_allclose(
            fuse(ties, base, tuned), fuse(Magnitude(density=0.2, scale=scale), base, tuned), rtol=1e-6
        )
