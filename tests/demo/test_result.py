from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sculpt.demo.result import DemoResult, DemoRow, best_rows, mean_error, standard_error
from sculpt.evaluate.scores import average, h_score


def row(name: str, target: float, general: float) -> DemoRow:
    return DemoRow(
        name=name,
        path=Path(name),
        target=target,
        general=general,
        perplexity=10.0,
        avg=average([general], [target]),
        h_score=h_score([general], [target]),
    )


def result(*rows: DemoRow, answers: int = 1000, tokens: int = 4000) -> DemoResult:
    return DemoResult(
        model="m", task="t", tiny=True, seed=0, num_test_answers=answers, num_prose_tokens=tokens, trained={}, rows=rows
    )


def test_standard_error_is_that_of_a_share() -> None:
    assert standard_error(50.0, 100) == pytest.approx(5.0)
    assert standard_error(0.0, 100) == 0.0


def test_error_of_a_mean_agrees_with_simulation() -> None:
    answers, tokens = 1000, 4000
    generator = np.random.default_rng(0)
    target = generator.binomial(answers, 0.35, 20_000) / answers * 100
    general = generator.binomial(tokens, 0.3, 20_000) / tokens * 100
    one = row("one", 35.0, 30.0)
    assert mean_error(result(one), one, "avg") == pytest.approx(np.std((target + general) / 2), rel=0.03)
    harmonic = 2 * target * general / (target + general)
    assert mean_error(result(one), one, "h_score") == pytest.approx(np.std(harmonic), rel=0.03)


def test_a_row_within_the_error_is_named_beside_the_best() -> None:
    best, close = best_rows(result(row("base", 2.0, 31.0), row("a", 34.8, 29.8), row("b", 34.2, 29.9)), "h_score")
    assert best.name == "a"
    assert [other.name for other in close] == ["b"]


def test_a_clear_winner_stands_alone() -> None:
    best, close = best_rows(result(row("a", 34.8, 29.8), row("b", 63.0, 30.0)), "avg")
    assert best.name == "b"
    assert close == ()


def test_a_model_that_gives_nothing_right_has_a_mean_all_the_same() -> None:
    nothing = row("nothing", 0.0, 0.0)
    assert mean_error(result(nothing), nothing, "h_score") == 0.0
