"""Every row of docs/one-formula.md: the method as it is, against `W_pre + (Σ w·δ·A)·(Σ w·A + λ·G)⁻¹`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
from sculpt.benchmarks.forgetting.rivals import Ace, Aim, Cgm, DgHard, NullSpace
from sculpt.fusion.arithmetic.curvature import Curvature

PAGE = Path(sculpt.__file__).with_name("docs") / "one-formula.md"
ROWS, WIDTH, TOKENS = 16, 9, 400
RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((ROWS, WIDTH))
TUNED = [BASE + size * RNG.standard_normal((ROWS, WIDTH)) for size in (0.2, 0.3)]
DELTAS = [model - BASE for model in TUNED]
GENERAL, *INPUTS = (RNG.standard_normal((TOKENS, WIDTH)) @ RNG.standard_normal((WIDTH, WIDTH)) for _ in range(3))
EYE = np.eye(WIDTH)

Row = Callable[[], tuple[Any, np.ndarray]]


def formula(
    deltas: Sequence[np.ndarray],
    a: Sequence[np.ndarray],
    *,
    w: Sequence[float] | None = None,
    g: np.ndarray | None = None,
    weight: float = 0.0,
) -> np.ndarray:
    """Return the right side of the page's formula."""
    shares = w or [1.0] * len(a)
    weighted = [share * one for share, one in zip(shares, a, strict=True)]
    both = sum(weighted) + (0 if g is None else weight * g)
    return BASE + sum(delta @ one for delta, one in zip(deltas, weighted, strict=True)) @ np.linalg.inv(both)


def moment(x: np.ndarray) -> np.ndarray:
    return x.T @ x / len(x)


def known(x: np.ndarray) -> Curvature:
    return Curvature(terms=((x * x).sum(0)[None],), num_tokens=len(x), gram=x.T @ x)


def means(values: np.ndarray) -> Curvature:
    """Return statistics of which these are the means."""
    return Curvature(terms=(values,), num_tokens=1)


def protected(*, data: bool, tuned: Any, weight: float, **options: Any) -> Any:
    settings = sculpt.Settings(protection=sculpt.Protection(weight=weight, ridge=0, **options))
    count = len(tuned) if isinstance(tuned, list) else 1
    own = [known(x) if data else None for x in INPUTS[:count]]
    method = sculpt.AdaDare(gamma=1, sparsity=0)
    return sculpt.apply(method, BASE, tuned, curvature=own, general=known(GENERAL), settings=settings)


def by_rows(f: np.ndarray, f0: np.ndarray, weight: float) -> np.ndarray:
    """Return the formula with diagonals that each row has its own of."""
    one = [
        formula([DELTAS[0][[k]]], [np.diag(f[k])], g=np.diag(f0[k]), weight=weight)[k] for k in range(ROWS)
    ]  # fmt: skip
    return np.stack(one)


def interpolation() -> tuple[Any, np.ndarray]:
    g = moment(GENERAL)
    return sculpt.apply(sculpt.TaskArithmetic(scale=1 / 1.6), BASE, TUNED[0]), formula(DELTAS[:1], [g], g=g, weight=0.6)


def averages() -> tuple[Any, np.ndarray]:
    weights = (2.0, 0.5)
    found = sculpt.apply(sculpt.TaskArithmetic(weights=weights, normalize=True), BASE, TUNED)
    return found, formula(DELTAS, [EYE, EYE], w=weights)


def model_stock() -> tuple[Any, np.ndarray]:
    one, other = DELTAS[0], DELTAS[0] + DELTAS[1]  # at less than a right angle
    cosine = float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other))
    found = sculpt.apply(sculpt.ModelStock(), BASE, [BASE + one, BASE + other])
    return found, formula([one, other], [EYE, EYE], g=EYE, weight=(1 - cosine) / cosine)


def lines() -> tuple[Any, np.ndarray]:
    names = [f"layers.{k}.weight" for k in range(5)]
    found = sculpt.apply(
        sculpt.Lines(alpha=0.2, beta=0.8), dict.fromkeys(names, BASE), dict.fromkeys(names, TUNED[0])
    )  # fmt: skip
    return found[names[3]], formula(DELTAS[:1], [EYE], g=EYE, weight=1 / (0.2 + 0.8 * 3 / 4) - 1)


def regmean() -> tuple[Any, np.ndarray]:
    a = [0.7 * moment(x) + 0.3 * np.diag(np.diag(moment(x))) for x in INPUTS]
    found = sculpt.apply(sculpt.RegMean(alpha=0.7), BASE, TUNED, curvature=[known(x) for x in INPUTS])
    return found, formula(DELTAS, a)


def fisher() -> tuple[Any, np.ndarray]:
    found = sculpt.apply(sculpt.Fisher(), BASE, TUNED, curvature=[known(x) for x in INPUTS])
    return found, formula(DELTAS, [np.diag(np.diag(moment(x))) for x in INPUTS])


def cgm() -> tuple[Any, np.ndarray]:
    f, f0 = np.random.default_rng(1).random((2, ROWS, WIDTH))
    found = sculpt.apply(Cgm(alpha=0.4), BASE, TUNED[0], curvature=means(f), general=means(f0))
    return found, by_rows(f, f0, 0.4)


def wudi() -> tuple[Any, np.ndarray]:
    w = [1 / (delta**2).sum() for delta in DELTAS]
    return sculpt.apply(sculpt.Wudi(ridge=0), BASE, TUNED), formula(DELTAS, [d.T @ d for d in DELTAS], w=w)


def actmat() -> tuple[Any, np.ndarray]:
    found = sculpt.apply(sculpt.Wudi(normalize=False, ridge=0), BASE, TUNED)
    return found, formula(DELTAS, [d.T @ d for d in DELTAS])


def ace() -> tuple[Any, np.ndarray]:
    centred = [10 * (delta - delta.mean(0)) for delta in DELTAS]  # so large that the energies are alike to ACE
    a = [d.T @ d + 0.01 * EYE for d in centred]
    common = sum(d.T @ d for d in centred).mean(0, keepdims=True).repeat(WIDTH, 0)
    found = sculpt.apply(Ace(), BASE, [BASE + 10 * delta for delta in DELTAS])
    return found, formula(centred, a, g=common, weight=1.0)


def dg_hard() -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(2)
    base, noise = rng.standard_normal((2, 60, 40))
    delta = 0.1 * noise + rng.standard_normal((60, 2)) @ rng.standard_normal((2, 40))
    found = sculpt.apply(DgHard(), base, base + delta)
    values = np.linalg.svd(delta)[1]
    cut = (values[1] + values[2]) / 2  # between the two that stand out and the others
    powers, vectors = np.linalg.eigh(delta.T @ delta / cut**2)
    a = np.clip(powers, 0, None) ** 40
    return found, base + delta @ (vectors * (a / (a + 1))) @ vectors.T


def aim() -> tuple[Any, np.ndarray]:
    size = np.abs(GENERAL).mean(0)
    held = 1 / (1 - 0.6 * size / size.max()) - 1
    found = sculpt.apply(Aim(omega=0.4), BASE, TUNED[0], general=means(size[None]))
    return found, formula(DELTAS[:1], [EYE], g=np.diag(held), weight=1.0)


def null_space() -> tuple[Any, np.ndarray]:
    values, vectors = np.linalg.eigh(moment(GENERAL))
    held = vectors[:, np.cumsum(values) > 0.2 * values.sum()]
    found = sculpt.apply(NullSpace(strength=0.8), BASE, TUNED[0], general=known(GENERAL))
    return found, formula(DELTAS[:1], [EYE], g=held @ held.T, weight=1e9)


def soft_null_space() -> tuple[Any, np.ndarray]:
    g = moment(GENERAL)
    found = sculpt.apply(NullSpace(form="soft", strength=0.5), BASE, TUNED[0], general=known(GENERAL))
    return found, formula(DELTAS[:1], [np.trace(g) / WIDTH * EYE], g=g, weight=0.5)


def two_sided() -> tuple[Any, np.ndarray]:
    found = protected(data=True, tuned=TUNED[0], weight=0.7)
    return found, formula(DELTAS[:1], [moment(INPUTS[0])], g=moment(GENERAL), weight=0.7)


def from_delta() -> tuple[Any, np.ndarray]:
    g, c = moment(GENERAL), DELTAS[0].T @ DELTAS[0]
    scale = np.sqrt(np.diag(g) / np.diag(c))
    a = c * np.outer(scale, scale)
    found = protected(data=False, tuned=TUNED[0], weight=0.1)
    return found, formula(DELTAS[:1], [a * np.trace(g) / np.trace(a)], g=g, weight=0.1)


def joint() -> tuple[Any, np.ndarray]:
    g = moment(GENERAL)
    a = [moment(x) * np.trace(g) / np.trace(moment(x)) for x in INPUTS]
    found = protected(data=True, tuned=TUNED, weight=0.3, shares=(1.0, 2.0))
    return found, formula(DELTAS, a, w=(1.0, 2.0), g=g, weight=0.3)


METHODS: dict[str, Row] = {
    "interpolation, WiSE-FT": interpolation,
    "weighted average": averages,
    "Model Stock": model_stock,
    "LiNeS": lines,
    "RegMean": regmean,
    "Fisher averaging": fisher,
    "CGM, soft": cgm,
    "WUDI": wudi,
    "ACTMat": actmat,
    "ACE-Merging": ace,
    "DG-Hard": dg_hard,
    "AIM": aim,
    "null space, as in GPM and AlphaEdit": null_space,
    "null space, soft": soft_null_space,
    "two-sided": two_sided,
    "two-sided without samples": from_delta,
    "two-sided for several": joint,
}


@pytest.mark.parametrize("row", METHODS.values(), ids=METHODS)
def test_the_method_is_the_formula(row: Row) -> None:
    found, expected = row()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_page_has_these_rows() -> None:
    table = re.findall(r"^\| \*?\*?([^|*]+?)\*?\*? \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert table[1:] == list(METHODS)
