"""AdaDARE-γ against an independent float64 oracle, and its expectations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from sculpt.fusion.arithmetic.passes import Map, Pass
from sculpt.fusion.arithmetic.per_element import Repeated
from sculpt.fusion.arithmetic.random import tensor_key
from sculpt.fusion.arithmetic.tile import RawTile
from sculpt.fusion.errors import MethodError
from sculpt.fusion.methods import AdaDare, Dare
from sculpt.fusion.methods.method import Method
from sculpt.fusion.run.backend import NumpyBackend

ROWS, COLUMNS = 60, 80
N = ROWS * COLUMNS


def heavy_tailed(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base, tuned and the diagonal of H of a layer with outlier columns and a tenth of the deltas zero."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(N).astype(np.float32)
    delta = rng.standard_t(2, N) * 0.01
    delta[rng.random(N) < 0.1] = 0
    tuned = (base + delta).astype(np.float32)
    h = 2 * np.exp(rng.standard_normal(COLUMNS) * 3) + 1
    return base, tuned, h


def tile(base: np.ndarray, tuned: np.ndarray, h: np.ndarray | None, seed: int = 0) -> RawTile:
    root = None
    if h is not None:
        root = Repeated(values=np.sqrt(h).astype(np.float32), repeat=len(base) // len(h), inner=len(h))
    return RawTile(start=0, base=base, tuned=(tuned,), keys=(tensor_key(seed, "w"),), root=root)


def reduced(method: Method, raw: RawTile) -> Map:
    """Run a method's reduction over one tile."""
    backend, reduction, value = NumpyBackend(), method.reduce(len(raw.base)), None
    while True:
        try:
            wanted = reduction.send(value)
        except StopIteration as end:
            return end.value
        assert isinstance(wanted, Pass)
        value = wanted.combine([backend.run_pass(raw, wanted)])


def fused(method: Method, raw: RawTile) -> tuple[np.ndarray, np.ndarray]:
    """Return the fused elements and the totals of `measure`."""
    out = np.empty_like(raw.base)
    rows = NumpyBackend().run_map(raw, reduced(method, raw), out)
    return out, rows.sum(axis=1)


def oracle_keep(delta: np.ndarray, h: np.ndarray, sparsity: float, *, exact: bool) -> np.ndarray:
    """Keep probabilities in float64: eq. 12, or water-filling found by bisection on c."""
    s = np.sqrt(np.tile(h, ROWS)) * np.abs(delta)
    budget = N * (1 - sparsity)
    c = budget / s.sum()
    if exact:
        if (s > 0).sum() <= budget:
            return (s > 0).astype(float)
        low, high = c, 1e12
        for _ in range(200):
            c = (low + high) / 2
            low, high = (c, high) if np.minimum(1, c * s).sum() < budget else (low, c)
    return np.minimum(1, c * s)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("allocation", ["closed-form", "exact"])
def test_probabilities_agree_with_a_float64_oracle(sparsity: float, allocation: str) -> None:
    base, tuned, h = heavy_tailed()
    delta = tuned.astype(np.float64) - base
    wanted = reduced(AdaDare(sparsity=sparsity, allocation=allocation), tile(base, tuned, h))  # pyright: ignore[reportArgumentType]
    c = wanted.arguments[0]
    s = np.sqrt(np.tile(h, ROWS)) * np.abs(delta)
    expected = oracle_keep(delta, h, sparsity, exact=allocation == "exact")
    np.testing.assert_allclose(np.minimum(1, c * s), expected, rtol=2e-5, atol=1e-9)
    assert wanted.figures["expected_keep"] == pytest.approx(expected.mean(), rel=1e-5)


@pytest.mark.parametrize("allocation", ["closed-form", "exact"])
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_expected_loss_is_the_closed_form_of_theorem_1(allocation: str, gamma: float) -> None:
    base, tuned, h = heavy_tailed()
    delta = tuned.astype(np.float64) - base
    q = oracle_keep(delta, h, 0.9, exact=allocation == "exact")
    some = delta != 0
    loss = np.tile(h, ROWS)[some] * delta[some] ** 2 * (gamma**2 / q[some] - 2 * gamma + 1)
    figures = reduced(AdaDare(gamma=gamma), tile(base, tuned, h)).figures
    key = "expected_loss_closed_form" if allocation == "closed-form" else "expected_loss_exact"
    assert figures[key] == pytest.approx(loss.sum(), rel=1e-4)


def test_closed_form_overshoots_and_exact_does_not() -> None:
    base, tuned, h = heavy_tailed()
    closed = reduced(AdaDare(sparsity=0.5), tile(base, tuned, h)).figures
    exact = reduced(AdaDare(sparsity=0.5, allocation="exact"), tile(base, tuned, h)).figures
    assert closed["expected_keep"] < 0.45
    assert exact["expected_keep"] == pytest.approx(0.5, rel=1e-5)
    assert exact["expected_loss_exact"] < closed["expected_loss_closed_form"]


@pytest.mark.parametrize("method", [AdaDare(gamma=1, sparsity=0.8), AdaDare(gamma=0.5, allocation="exact"), Dare()])
def test_the_mean_over_a_thousand_seeds_converges_on_delta(method: Method) -> None:
    base, tuned, h = heavy_tailed()
    base, tuned = base[:800], tuned[:800]
    delta = tuned.astype(np.float64) - base
    strength = getattr(method, "gamma", 1.0)
    moves = []
    for seed in range(1000):
        out, _ = fused(method, tile(base, tuned, h, seed))
        moves.append(out.astype(np.float64) - base)
    mean, spread = np.mean(moves, axis=0), np.std(moves, axis=0)
    error = np.abs(mean - strength * delta)
    # An element that was kept only a few times in a thousand has no spread to speak of: judge those with ten or more.
    often = np.count_nonzero(moves, axis=0) >= 10
    assert often.sum() > 400
    assert (error[often] <= 5.5 * spread[often] / np.sqrt(1000) + 1e-6).all()
    total = np.abs(np.sum(moves, axis=1) - strength * delta.sum())
    assert abs(np.sum(moves, axis=1).mean() - strength * delta.sum()) < 5 * total.std() / np.sqrt(1000) + 1e-3


def test_realised_sparsity_of_exact_is_within_four_standard_errors() -> None:
    for seed in range(20):
        base, tuned, h = heavy_tailed(seed)
        q = oracle_keep(tuned.astype(np.float64) - base, h, 0.7, exact=True)
        _, totals = fused(AdaDare(sparsity=0.7, allocation="exact"), tile(base, tuned, h, seed))
        assert abs(totals[0] - q.sum()) <= 4 * np.sqrt((q * (1 - q)).sum()) + 1


def test_kept_deltas_of_a_column_all_have_one_magnitude() -> None:
    base, tuned, h = heavy_tailed()
    base = np.zeros_like(base)
    tuned = (tuned - heavy_tailed()[0]).astype(np.float32)
    method = AdaDare(gamma=1, sparsity=0.95)
    c = reduced(method, tile(base, tuned, h)).arguments[0]
    out, _ = fused(method, tile(base, tuned, h))
    expected = np.broadcast_to(1 / (c * np.sqrt(h)), (ROWS, COLUMNS)).reshape(-1)
    unclipped = (out != 0) & (np.abs(tuned) < 0.99 * expected)
    assert unclipped.sum() > 50
    np.testing.assert_allclose(np.abs(out[unclipped]), expected[unclipped], rtol=1e-5)


def test_masks_are_nested_over_sparsity() -> None:
    base, tuned, h = heavy_tailed()
    kept = [fused(AdaDare(sparsity=p), tile(base, tuned, h))[0] != base for p in (0.5, 0.8, 0.9, 0.99)]
    for larger, smaller in pairwise(kept):
        assert (larger | ~smaller).all()


def test_fewer_changed_elements_than_the_budget_are_all_kept_by_exact() -> None:
    base, tuned, h = heavy_tailed()
    tuned[100:] = base[100:]
    out, _ = fused(AdaDare(gamma=1, sparsity=0.5, allocation="exact"), tile(base, tuned, h))
    assert out.tobytes() == tuned.tobytes()


@pytest.mark.parametrize("allocation", ["closed-form", "exact"])
def test_zero_delta_returns_the_base(allocation: str) -> None:
    base, _, h = heavy_tailed()
    out, totals = fused(AdaDare(allocation=allocation), tile(base, base.copy(), h))  # pyright: ignore[reportArgumentType]
    assert out.tobytes() == base.tobytes()
    assert totals[1] == N


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: AdaDare(sparsity=90), "`sparsity` must lie between 0 and 1, got 90"),
        (lambda: AdaDare(gamma=float("nan")), "`gamma` must be a finite number of at least 0, got nan"),
        (lambda: AdaDare(gamma=-1), "`gamma` must be a finite number of at least 0, got -1"),
        (lambda: AdaDare(allocation="best"), "`allocation` must be one of closed-form, exact, got `best`"),  # pyright: ignore[reportArgumentType]
        (lambda: Dare(scale=float("inf")), "`scale` must be a finite number of at least 0, got inf"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], Method], told: str) -> None:
    with pytest.raises(MethodError) as failure:
        make()
    assert failure.value.message == told
