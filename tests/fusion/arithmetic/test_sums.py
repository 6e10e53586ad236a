"""Sums over blocks are correctly rounded, however many blocks there are and whatever they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sculpt.fusion.arithmetic.sums import added, exact_total

RNG = np.random.default_rng(0)
NUMBERS = {
    "counts": RNG.integers(0, 4097, 3000).astype(np.float64),
    "sums": RNG.random(5000),
    "signs": RNG.standard_normal(5000),
    "cancelling": np.concatenate([RNG.standard_normal(2000) * 1e30, RNG.standard_normal(2000) * 1e-30]),
    "all sizes": np.ldexp(RNG.standard_normal(4000), RNG.integers(-1070, 900, 4000)),
    "too large to cut": np.ldexp(RNG.standard_normal(600), 980),
    "subnormal": np.full(1000, 5e-324),
    "zeros": np.zeros(1000),
    "few": RNG.standard_normal(7),
    "ties": np.array([2.0**53, *[1.0] * 999, 2.0**-30]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_totals_are_those_of_fsum(name: str) -> None:
    row = NUMBERS[name]
    tiles = np.array_split(np.stack([row, -row[::-1]]), 3, axis=1)
    total = math.fsum(row.tolist())
    assert exact_total(tiles).tolist() == [total, -total]


def test_totals_of_what_cancels_are_zero() -> None:
    row = RNG.standard_normal(1000) * 10.0 ** RNG.integers(-200, 200, 1000)
    assert exact_total([np.concatenate([row, -row])[None]]).tolist() == [0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gives_no_finite_total(bad: float) -> None:
    row = RNG.standard_normal(1000)
    row[77] = bad
    assert not np.isfinite(exact_total([row[None]])[0])
    assert np.isnan(exact_total([np.append(row, -row)[None]])[0])


def test_weights_add_up_alike_in_every_python() -> None:
    assert added([0.1, 0.2, 0.3]) == 0.6000000000000001  # `sum` gives 0.6 from Python 3.12 on
    assert added([]) == 0.0
