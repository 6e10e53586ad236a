"""VQA accuracy, and the form in which answers are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sculpt.evaluate.evaluate import evaluate
from sculpt.evaluate.suite import Caption, ExactMatch, Vqa
from sculpt.evaluate.vqa import plain_answer, vqa_accuracy
from sculpt.fusion.errors import DataError
from sculpt.live.model import load_model

from .conftest import Pair


def test_every_task_in_which_a_model_writes_is_told_how_in_the_same_words() -> None:
    tasks = (ExactMatch, Vqa, Caption)
    assert all({"max_new_tokens", "stop", "penalties"} <= {*task.model_fields} for task in tasks)
    assert [task.model_fields["max_new_tokens"].default for task in tasks] == [32, 16, 32]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Dog.", "dog"),
        ("two  dogs", "2 dogs"),
        ("don't know", "dont know"),
        ("the dog's", "dog's"),  # no contraction: the evaluation code tells it from `dogs`
        ("a-b/-c", "b c"),  # marks are looked at in the answer as it was written
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        (".5", ".5"),  # not 5
        ("black/white", "black white"),
        ("yes, it is!", "yes it is"),
        ("none", "0"),
        ("a", ""),
    ],
)
def test_answers_are_compared_in_the_form_of_the_evaluation_code(text: str, plain: str) -> None:
    assert plain_answer(text) == plain


def test_an_answer_counts_by_how_many_people_gave_it() -> None:
    people = ["net"] * 2 + ["Netting"] * 4 + ["a net", "mesh", "table", "white net"]
    assert vqa_accuracy("the net", people) == 1  # three people
    assert vqa_accuracy("netting", people) == 1
    assert vqa_accuracy("mesh.", people) == pytest.approx(1 / 3)
    assert vqa_accuracy("dog", people) == 0


def test_a_suite_has_vqa_accuracy(
    pair: Pair, rows_file: Callable[..., Path], suite_file: Callable[[str], Path]
) -> None:
    rows = [{"prompt": "x", "answers": ["a", "b", "c"]}, {"prompt": "y", "answers": [{"answer": "q"}] * 10}]
    rows_file("q.jsonl", *rows)
    suite = suite_file("target: {qa: {scorer: vqa, file: q.jsonl, max_new_tokens: 4, stop: []}}")
    with load_model(pair.base, device="cpu", dtype="float32") as model:
        (found,) = evaluate(model, suite).tasks
        assert (found.scorer, found.num_rows) == ("vqa", 2)
        assert 0 <= found.score <= 100
        rows_file("q.jsonl", {"prompt": "x", "answers": ["a", "b"]})
        with pytest.raises(DataError, match="must be a list of at least 3 people's answers"):
            evaluate(model, suite)


def test_a_field_that_nothing_reads_is_ignored_where_the_task_says_so(
    pair: Pair, rows_file: Callable[..., Path], suite_file: Callable[[str], Path]
) -> None:
    rows_file("q.jsonl", {"prompt": "x", "answers": ["a"] * 3, "question_type": "what is"})
    task = "target: {{qa: {{scorer: vqa, file: q.jsonl, max_new_tokens: 2{}}}}}"
    with load_model(pair.base, device="cpu", dtype="float32") as model:
        with pytest.raises(DataError, match="holds `question_type`, which nothing reads") as caught:
            evaluate(model, suite_file(task.format("")))
        assert not caught.value.ways  # a suite has keys, and no flags
        assert "`unknown_fields: ignore`" in str(caught.value.hint)
        assert evaluate(model, suite_file(task.format(", unknown_fields: ignore"))).tasks[0].num_rows == 1
