"""Reading suites, and what a suite's scores add up to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sculpt.evaluate.evaluate import SuiteScores, TaskScore
from sculpt.evaluate.suite import Perplexity, read_suite
from sculpt.fusion.errors import DataError, RecipeError


def test_tasks_come_in_order_the_pre_trained_first(suite_file: Callable[[str], Path]) -> None:
    suite = read_suite(
        suite_file("""
name: release
target:
  tags: {scorer: exact-match, file: tags.jsonl}
pretrained:
  prose: {scorer: perplexity, file: prose.jsonl, limit: 5}
""")
    )
    assert [(side, name) for side, name, _ in suite.tasks()] == [("pretrained", "prose"), ("target", "tags")]
    assert suite.name == "release"
    assert suite.measures()[:2] == ["prose", "tags"]
    task = next(suite.tasks())[2]
    assert isinstance(task, Perplexity)
    assert task.limit == 5


BAD = {
    "a scorer that is not": ("target:\n  a: {scorer: bleu, file: x}\n", RecipeError, "line 2"),
    "a key that is not": ("target:\n  a: {scorer: perplexity, file: x, lenght: 3}\n", RecipeError, "unknown key"),
    "no file": ("target:\n  a: {scorer: perplexity}\n", RecipeError, "`file` is missing"),
    "relative to nothing": (
        "target:\n  a: {scorer: perplexity, file: x, score: relative}\n",
        RecipeError,
        "`score: relative` and `reference` go together",
    ),
    "no task": ("name: x\n", DataError, "names no task"),
    "one name twice": (
        "target:\n  a: {scorer: classification, file: x}\npretrained:\n  a: {scorer: classification, file: x}\n",
        DataError,
        "has `a` on both sides",
    ),
    "the name of a mean": ("target:\n  avg: {scorer: classification, file: x}\n", DataError, "the name of a mean"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_suite_is_refused(case: str, suite_file: Callable[[str], Path]) -> None:
    text, error, message = BAD[case]
    with pytest.raises(error) as caught:
        read_suite(suite_file(text))
    assert message in str(caught.value)


def scores(**sides: list[float]) -> SuiteScores:
    return SuiteScores(
        suite="s",
        tasks=tuple(
            TaskScore(name=f"{side}{k}", side=side, scorer="perplexity", score=score, num_rows=1)  # pyright: ignore[reportArgumentType]
            for side, found in sides.items()
            for k, score in enumerate(found)
        ),
    )


def test_measures_are_the_papers_on_its_zero_shot_row() -> None:
    general = [143.0, 116.9, 124.0, 122.6, 57.26, 60.75, 76.65, 49.19]
    measures = scores(pretrained=general, target=[83.4]).measures
    assert round(measures["avg"], 2) == 92.64
    assert round(measures["h-score"], 2) == 88.29
    assert measures["source-target-avg"] == pytest.approx((measures["pretrained"] + measures["target"]) / 2)


def test_one_side_alone_has_no_avg() -> None:
    measures = scores(target=[40.0, 60.0]).measures
    assert measures == {"target0": 40.0, "target1": 60.0, "target": 50.0}
