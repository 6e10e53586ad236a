"""`sculpt eval` and `sculpt gate` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..evaluate.conftest import llama, save
from .test_commands import sculpt

SUITE = """
pretrained:
  prose: {scorer: perplexity, file: prose.jsonl}
target:
  quiz: {scorer: multiple-choice, file: quiz.jsonl}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a suite."""
    folder = tmp_path_factory.mktemp("evaluate")
    save(llama(0), folder / "base")
    (folder / "suite.yaml").write_text(SUITE)
    texts = ["The cat sat on the mat.", "A longer sentence, so that rows differ."]
    (folder / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = [{"prompt": "Sky is", "choices": [" blue", " green", " x"], "answer": k} for k in range(3)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_json_holds_each_task_and_the_means(home: Path) -> None:
    done = sculpt("eval", "base", "--suite", "suite.yaml", "--device", "cpu", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [task["name"] for task in found["tasks"]] == ["prose", "quiz"]
    assert found["measures"]["quiz"] == pytest.approx(100 / 3)
    assert found["measures"]["avg"] == pytest.approx((found["measures"]["prose"] + 100 / 3) / 2)
    assert found["tasks"][0]["figures"]["perplexity"] > 1


def test_people_see_a_table(home: Path) -> None:
    done = sculpt("eval", "base", "--suite", "suite.yaml", "--device", "cpu", cwd=home)
    assert done.stdout == ""
    for part in ("prose", "multiple-choice", "33.33", "H-score"):
        assert part in done.stderr


def test_a_gate_that_is_passed_exits_0_and_one_that_is_not_exits_1(home: Path) -> None:
    arguments = ("gate", "base", "--suite", "suite.yaml", "--device", "cpu", "--base", "base")
    passed = sculpt(*arguments, "--min", "h-score=0.9*base", "--min", "quiz=33", cwd=home)
    assert passed.returncode == 0, passed.stderr
    assert "passed: quiz is 33.33, which reaches 33.00" in passed.stderr
    failed = sculpt(*arguments, "--min", "quiz=base+1", "--json", cwd=home)
    assert failed.returncode == 1
    assert "failed: quiz is 33.33, which is below base +1 = 34.33" in failed.stderr
    assert json.loads(failed.stdout)["passed"] is False


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("quiz=0.9*base", "error: `quiz=0.9*base` needs `--base`\n"),
        ("prise=3", "error: `prise=3` names no measure of the suite\n"),
        ("quiz", "error: `quiz` is no limit\n"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_refused_before_a_model_is_loaded(limit: str, told: str, home: Path) -> None:
    done = sculpt("gate", "nowhere", "--suite", "suite.yaml", "--min", limit, cwd=home)
    assert done.returncode == 1
    assert done.stderr.startswith(told), done.stderr
