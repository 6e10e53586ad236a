"""Limits, as they are written and as they are judged."""

from __future__ import annotations

import pytest
from sculpt.evaluate.gate import Limit, judge
from sculpt.fusion.errors import MethodError

BASE, TUNED = {"h-score": 40.0, "target": 50.0}, {"h-score": 60.0, "target": 80.0}


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("h-score=0.9*base", 36.0),
        ("target>=0.97*tuned", 77.6),
        ("target >= 0.5 * base", 25.0),
        ("target=base", 50.0),
        ("target>=tuned-2.5", 77.5),
        ("h-score=base + 1", 41.0),
        ("h-score=43.5", 43.5),
    ],
)
def test_a_limit_is_what_it_says(text: str, least: float) -> None:
    assert Limit.parse(text).least({"base": BASE, "tuned": TUNED}) == pytest.approx(least)


@pytest.mark.parametrize("text", ["", "h-score", "h-score<3", "h-score=0.9*other", "=3", "h-score=-3", "a=b=3"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(MethodError, match="is not a limit"):
        Limit.parse(text)


def test_a_verdict_is_a_sentence() -> None:
    own = {"h-score": 38.0, "target": 77.0}
    passed, failed, exact = judge(
        [Limit.parse("h-score=0.9*base"), Limit.parse("target=tuned-1"), Limit.parse("target=77")],
        own,
        {"base": BASE, "tuned": TUNED},
    )
    assert (passed.passed, failed.passed, exact.passed) == (True, False, True)
    assert passed.sentence() == "h-score is 38.00, which reaches 0.9·base = 36.00"
    assert failed.sentence() == "target is 77.00, which is below tuned -1 = 79.00"
    assert exact.sentence() == "target is 77.00, which reaches 77.00"


def test_a_measure_that_the_suite_lacks_is_refused() -> None:
    with pytest.raises(MethodError, match="`prose=3` names no measure of the suite"):
        judge([Limit.parse("prose=3")], {"target": 1.0}, {})
