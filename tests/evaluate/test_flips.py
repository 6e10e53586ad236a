"""Answers that flip between two models, and how much of that is guessing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sculpt.evaluate.evaluate import SuiteScores, TaskScore, score_suite
from sculpt.evaluate.flips import counted_tasks, flips, parse_percent, worst
from sculpt.evaluate.suite import TaskSide, read_suite
from sculpt.fusion.errors import DataError, MethodError
from sculpt.live.model import load_model

from .conftest import Pair


def scores(*tasks: tuple[str, TaskSide, str], luck: float = 0.0) -> SuiteScores:
    """Return scores of tasks, given as name, side, and a 1 for each right answer."""
    return SuiteScores(
        suite="s",
        tasks=tuple(
            TaskScore(
                name=name, side=side, scorer="exact-match", score=0, num_rows=len(right),
                outcomes=tuple(c == "1" for c in right), luck=luck,
            )
            for name, side, right in tasks
        ),
    )  # fmt: skip


def test_each_share_is_of_the_answers_that_it_names() -> None:
    base = scores(("known", "pretrained", "1111100000"), ("new", "target", "00"))
    tuned = scores(("known", "pretrained", "1100010000"), ("new", "target", "11"))
    model = scores(("known", "pretrained", "1011001000"), ("new", "target", "10"))
    known, new = flips(base, model, tuned)
    assert (known.forgotten, known.learned, known.preserved) == (20, 10, 60)
    assert (known.healed, known.retained) == (pytest.approx(200 / 3), pytest.approx(100 / 3))
    assert (new.learned, new.preserved, new.healed, new.retained) == (50, None, None, 50)
    assert new.as_json()["target_retention"] == known.as_json()["preserved"] - 10
    assert "non_damage" not in new.as_json()
    alone = flips(base, model)[0]
    assert (alone.forgotten, alone.healed, alone.retained) == (20, None, None)
    assert worst([new, known]) is known


def test_what_guessing_explains_is_taken_off_and_what_was_known_is_not() -> None:
    generator, count, choices = np.random.default_rng(0), 40_000, 4
    known_before = generator.random(count) < 0.5
    known_after = generator.random(count) < 0.8
    before, after = (known | (generator.random(count) < 1 / choices) for known in (known_before, known_after))
    text = ["".join(map(str, right.astype(int))) for right in (before, after)]
    first, second = (scores(("quiz", "pretrained", right), luck=1 / (choices - 1)) for right in text)
    found = flips(first, second)[0]
    # What was known and is not is guessed right again once in four, and the other way round.
    by_knowledge = [known_before & ~after, known_after & ~before]
    assert [found.forgotten, found.learned] == pytest.approx([100 * np.mean(one) for one in by_knowledge], abs=0.6)
    assert found.by_luck > 1.5


def test_no_less_is_forgotten_than_is_lost_more_than_won() -> None:
    before, after = (scores(("quiz", "pretrained", right), luck=1.0) for right in ("1111100000", "1111000000"))
    found = flips(before, after)[0]
    assert found.by_luck > found.lost - found.won == found.forgotten == 10
    assert flips(before, before)[0].forgotten == 0


def test_models_that_answered_other_rows_are_not_compared() -> None:
    with pytest.raises(DataError, match="of `known` two models answered other numbers of rows"):
        flips(scores(("known", "pretrained", "11")), scores(("known", "pretrained", "1")))


@pytest.mark.parametrize(("text", "percent"), [("2%", 2), ("0.5 %", 0.5), ("3", 3), (".5%", 0.5)])
def test_a_share_is_in_percent(text: str, percent: float) -> None:
    assert parse_percent(text) == percent


@pytest.mark.parametrize("text", ["", "-1%", "two", "101%", "1/2"])
def test_anything_else_is_no_share(text: str) -> None:
    with pytest.raises(MethodError, match="is no share of the answers"):
        parse_percent(text)


def test_scorers_say_of_each_row_whether_it_is_right(
    pair: Pair, rows_file: Callable[..., Path], suite_file: Callable[[str], Path]
) -> None:
    rows_file("two.jsonl", *({"prompt": "Sky is", "choices": [" blue", " green"], "answer": k} for k in (0, 1, 0)))
    rows_file("four.jsonl", *({"prompt": "a", "choices": list("bcde"), "answer": k} for k in range(4)))
    with load_model(pair.base, device="cpu") as live:
        from sculpt.data.encoding import Encoder
        from sculpt.data.row import Row
        from sculpt.predict.generation import generate

        prompt = Encoder(live.path, live.model, max_length=64, for_scores=True).prompt(
            Row({"prompt": "abc", "answer": ""}, "a row", Path()), room=4
        )
        written = generate(live, [prompt], max_new_tokens=4, stop=(), batch_size=1)[0].strip()
        rows_file("exact.jsonl", {"prompt": "abc", "answer": written}, {"prompt": "abc", "answer": "no such answer"})
        rows_file("prose.jsonl", {"text": "The cat sat."})
        suite = read_suite(
            suite_file(
                "pretrained:\n"
                "  two: {scorer: multiple-choice, file: two.jsonl}\n"
                "  four: {scorer: multiple-choice, file: four.jsonl}\n"
                "  exact: {scorer: exact-match, file: exact.jsonl, max_new_tokens: 4, stop: []}\n"
                "  prose: {scorer: perplexity, file: prose.jsonl}\n"
            )
        )
        found = {task.name: task for task in score_suite(live, suite).tasks}
    assert found["two"].outcomes in [(True, False, True), (False, True, False)]
    assert sum(found["four"].outcomes) == 1
    assert (found["two"].luck, found["four"].luck) == (1, pytest.approx(1 / 3))
    assert found["exact"].outcomes == (True, False)
    assert found["prose"].outcomes == ()
    assert counted_tasks(suite) == ["two", "four", "exact"]
    assert "outcomes" not in found["two"].as_json()
