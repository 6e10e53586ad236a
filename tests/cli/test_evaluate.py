"""`sculpt eval` and `sculpt gate` as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sculpt.evaluate.report import make_report

from ..evaluate.conftest import llama, save

Sculpt = Callable[..., Any]
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


def test_json_holds_each_task_and_the_means(sculpt: Sculpt, home: Path) -> None:
    done = sculpt("eval", "base", "--suite", "suite.yaml", "--device", "cpu", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [task["name"] for task in found["tasks"]] == ["prose", "quiz"]
    assert found["measures"]["quiz"] == pytest.approx(100 / 3)
    assert found["measures"]["avg"] == pytest.approx((found["measures"]["prose"] + 100 / 3) / 2)
    assert found["tasks"][0]["figures"]["perplexity"] > 1


def test_people_see_a_table(sculpt: Sculpt, home: Path) -> None:
    done = sculpt("eval", "base", "--suite", "suite.yaml", "--device", "cpu", cwd=home)
    for part in ("prose", "multiple-choice", "33.33", "H-score"):
        assert part in done.stdout


def test_a_gate_that_is_passed_exits_0_and_one_that_is_not_exits_3(sculpt: Sculpt, home: Path) -> None:
    arguments = ("gate", "base", "--suite", "suite.yaml", "--device", "cpu", "--base", "base")
    passed = sculpt(*arguments, "--min", "h-score=0.9*base", "--min", "quiz=33", cwd=home)
    assert passed.returncode == 0, passed.stderr
    assert "passed: quiz is 33.33, which reaches 33.00" in passed.stdout
    failed = sculpt(*arguments, "--min", "quiz=base+1", "--json", cwd=home)
    assert failed.returncode == 3
    assert "failed: quiz is 33.33, which is below base +1 = 34.33" in failed.stderr
    assert json.loads(failed.stdout)["passed"] is False


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("quiz=0.9*base", "error: `quiz=0.9*base` needs `--base`\n"),
        ("prise=3", "error: `prise=3` names no measure of the suite\n"),
        ("quiz", "error: `quiz` is not a limit\n"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_refused_before_a_model_is_loaded(
    limit: str, told: str, sculpt: Sculpt, home: Path
) -> None:
    (home / "hollow").mkdir(exist_ok=True)  # no model
    done = sculpt("gate", "hollow", "--suite", "suite.yaml", "--min", limit, cwd=home)
    assert done.returncode == 1
    assert done.stderr.startswith(told), done.stderr


@pytest.fixture(scope="module")
def tuned(home: Path) -> Path:
    """The same model, moved by noise."""
    import torch

    model = llama(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    return save(model, home / "sft")


def test_a_model_is_compared_with_its_base_on_a_suite_and_on_data(sculpt: Sculpt, home: Path, tuned: Path) -> None:
    arguments = ("eval", "sft", "--suite", "suite.yaml", "--device", "cpu", "--against", "base", "--tuned", "sft")
    done = sculpt(*arguments, "--data", "prose.jsonl", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {kind["kind"] for kind in found["moved"]["kinds"]} == {"prose.jsonl", "prose", "quiz"}
    assert [one["name"] for one in found["flips"]] == ["quiz"]
    assert found["flips"][0]["target_retention"] == 100
    assert found["measures"]["quiz"] == pytest.approx(100 / 3)
    printed = sculpt(*arguments, cwd=home)
    shown = printed.stdout + printed.stderr
    for part in (
        "answers that flipped",
        "target retention 100.00 %",
        "answers to prose are not right or wrong",
        "nats",
    ):
        assert part in shown
    for idle in (("--data", "prose.jsonl"), ("--tuned", "base")):
        refused = sculpt("eval", "sft", "--suite", "suite.yaml", *idle, cwd=home)
        assert refused.stderr.startswith(f"error: `{idle[0]}` has no effect without `--against`")
    assert sculpt("eval", "sft", cwd=home).stderr.startswith("error: there is nothing to do without `--suite`")


def test_a_gate_names_the_task_of_which_most_was_forgotten(sculpt: Sculpt, home: Path) -> None:
    from sculpt.evaluate.evaluate import evaluate

    save(llama(3), home / "other")
    (home / "two.yaml").write_text(
        "pretrained:\n"
        "  same: {scorer: multiple-choice, file: same.jsonl}\n"
        "  turned: {scorer: multiple-choice, file: turned.jsonl}\n"
    )
    # Each prompt has the base's choice as its answer; those that another model chooses otherwise are apart.
    letters = [(chr(97 + k), chr(97 + (7 * k + 3) % 26)) for k in range(26)]
    rows = [{"prompt": "Sky", "choices": pair, "answer": 0} for pair in letters]
    for name in ("same", "turned"):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = (
        evaluate(home / name, home / "two.yaml", device="cpu").tasks[0].outcomes for name in ("base", "other")
    )
    kept = [{**row, "answer": 0 if a else 1} for row, a, b in zip(rows, first, second, strict=True) if a == b]
    lost = [{**row, "answer": 0 if a else 1} for row, a, b in zip(rows, first, second, strict=True) if a != b]
    assert kept
    assert lost
    (home / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (home / "turned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*lost, kept[0]]))
    arguments = ("gate", "other", "--suite", "two.yaml", "--device", "cpu", "--base", "base", "--max-forgotten")
    failed = sculpt(*arguments, "2%", "--json", cwd=home)
    assert failed.returncode == 3
    share = 100 * len(lost) / (len(lost) + 1)
    assert f"failed: most was forgotten of turned: {share:.2f} % of its answers" in failed.stderr
    found = json.loads(failed.stdout)
    assert (found["passed"], found["forgotten"]["worst"], found["forgotten"]["most"]) == (False, "turned", 2)
    assert sculpt(*arguments, "100", cwd=home).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "a gate needs a limit, `--min` or `--max-forgotten`"),
        (("--max-forgotten", "2%"), "`--max-forgotten` needs `--base`"),
        (
            ("--max-forgotten", "2%", "--base", "hollow"),
            "`--max-forgotten` needs a task under `pretrained:` whose answers",
        ),
        (("--max-forgotten", "some"), "`some` is no share of the answers"),
    ],
)
def test_a_gate_on_what_is_forgotten_that_cannot_be_judged_is_refused(
    arguments: tuple[str, ...], told: str, sculpt: Sculpt, home: Path
) -> None:
    (home / "hollow").mkdir(exist_ok=True)  # no model
    done = sculpt("gate", "hollow", "--suite", "suite.yaml", *arguments, cwd=home)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {told}"), done.stderr


def test_a_sweep_shows_its_points_and_writes_the_one_that_is_picked(sculpt: Sculpt, home: Path, tuned: Path) -> None:
    arguments = ("sweep", "base", "sft", "--suite", "suite.yaml", "--device", "cpu", "--no-calibration")
    done = sculpt(*arguments, "--gamma", "0:1:0.5", "--pick", "avg", "-o", "out", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(p["family"], p["strength"]) for p in found["points"]][2:] == [("adadare", s) for s in (0.0, 0.5, 1.0)]
    best = max(found["points"][2:], key=lambda p: p["measures"]["avg"])
    assert found["picked"]["strength"] == best["strength"]
    scored = json.loads(
        sculpt("eval", "out/fused", "--suite", "suite.yaml", "--device", "cpu", "--json", cwd=home).stdout
    )
    assert scored["measures"] == best["measures"]
    manifest = json.loads((home / "out/fused/sculpt-manifest.json").read_text())
    assert manifest["options"]["gamma"] == best["strength"]
    assert manifest["command"].startswith("sculpt sweep base sft")
    assert (home / "out/sweep.csv").read_text().count("\n") == 6
    assert (home / "out/fused/README.md").read_text().count("# sft-adadare\n") == 1
    page = make_report(home / "out/fused", scores=[home / "out/sweep.json"])
    assert f"adadare p=0.9, γ = {best['strength']:g}</th>" in page
    assert f"{best['measures']['target']:.1f} on the target tasks" in page
    again = sculpt(*arguments, "--pick", "avg", "-o", "out", cwd=home)
    assert again.returncode == 1
    assert again.stderr.startswith("error: `out` exists")


def test_a_sweep_of_protections_writes_the_one_that_is_picked(sculpt: Sculpt, home: Path, tuned: Path) -> None:
    arguments = ("sweep", "base", "sft", "--suite", "suite.yaml", "--device", "cpu", "--data", "prose.jsonl")
    options = (
        "--protect",
        "default",
        "--protect-weight",
        "0.1,10",
        "--curvature",
        "block:8",
        "--sparsity",
        "0,0.5",
    )
    done = sculpt(*arguments, *options, "--pick", "avg", "-o", "protected", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    tried = [(p["protection"]["weight"], p["options"]["gamma"], p["sparsity"]) for p in found["points"][2:]]
    assert tried == [(0.1, 1.0, 0.0), (10.0, 1.0, 0.0), (0.1, 1.0, 0.5), (10.0, 1.0, 0.5)]
    manifest = json.loads((home / "protected/fused/sculpt-manifest.json").read_text())
    assert manifest["settings"]["protection"] == found["picked"]["protection"]
    assert all(kind["divergence"] > 0 for kind in manifest["moved"]["kinds"])
    scored = json.loads(
        sculpt("eval", "protected/fused", "--suite", "suite.yaml", "--device", "cpu", "--json", cwd=home).stdout
    )
    assert scored["measures"] == found["picked"]["measures"]
    page = make_report(home / "protected/fused", scores=[home / "protected/sweep.json"])
    picked = found["picked"]
    name = f"two-sided (block:8), then adadare p={picked['sparsity']:g}, λ = {picked['strength']:g}"
    assert f'<th scope="col">{name}</th>' in page
    assert f"{picked['measures']['target']:.1f} on the target tasks" in page
    refused = sculpt(*arguments, "--protect-weight", "1", cwd=home)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: `--protect-weight` has no effect without `--protect`")


def test_a_comparison_is_a_table_in_every_form(sculpt: Sculpt, home: Path, tuned: Path) -> None:
    arguments = ("base", "sft", "--suite", "suite.yaml", "--device", "cpu", "--no-calibration")
    done = sculpt("compare", *arguments, "--methods", "adadare,dare", "-o", "t.md", "-o", "t.tex", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows] == ["zero-shot", "fine-tune", "adadare", "dare"]
    assert (home / "t.md").read_text().startswith("| method | strength | ")
    assert "bottomrule" in (home / "t.tex").read_text()
    refused = sculpt("benchmark", *arguments, "--pick", "avg", cwd=home)
    assert refused.stderr.startswith("error: `--pick` has no effect without `--choose-on`")


def test_a_pick_that_no_point_reaches_writes_no_model(sculpt: Sculpt, home: Path, tuned: Path) -> None:
    done = sculpt(
        *("sweep", "base", "sft", "--suite", "suite.yaml", "--device", "cpu", "--method", "task-arithmetic"),
        *("--gamma", "0.5", "--pick", "quiz=100", "-o", "none"),
        cwd=home,
    )
    assert done.returncode == 1
    assert "error: no point of the sweep keeps `quiz=100`" in done.stderr
    assert not (home / "none/fused").exists()
