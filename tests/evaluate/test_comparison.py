"""The papers' tables: what is scored at which strength, and how the rows are written."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sculpt.api import prepare_fuse
from sculpt.cli.benchmark import split_methods
from sculpt.evaluate.choice import Pick
from sculpt.evaluate.comparison import Best, Contender, compare, table_of
from sculpt.evaluate.evaluate import evaluate
from sculpt.evaluate.given_scores import read_lines, scores_from_table
from sculpt.evaluate.live_fuse import LiveFuse
from sculpt.evaluate.suite import read_suite
from sculpt.fusion.errors import DataError, MethodError, OutputError
from sculpt.fusion.methods import Dare, TaskArithmetic
from sculpt.fusion.run.settings import Settings
from sculpt.fusion.table import MEAN_OF_SIDES, Table, refuse_tables

from .conftest import Pair

SUITE = """
pretrained: {prose: {scorer: perplexity, file: prose.jsonl, score: probability}}
target: {quiz: {scorer: multiple-choice, file: quiz.jsonl}}
"""
# AdaDARE-γ, Tab. 1: the zero-shot row; Avg and H-score as printed.
PAPER = ["base", "143.0", "116.9", "124.0", "122.6", "57.26", "60.75", "76.65", "49.19", "83.4"]


@pytest.fixture
def suite(rows_file: Callable[..., Path], suite_file: Callable[[str], Path]):
    rows_file("prose.jsonl", {"text": "The cat sat on the mat."}, {"text": "A second line of text."})
    rows_file("quiz.jsonl", *({"prompt": f"Q{k}", "choices": [" a", " b", " c"], "answer": k % 3} for k in range(6)))
    return read_suite(suite_file(SUITE))


def test_rows_are_scored_as_fused_models_are(pair: Pair, suite, tmp_path: Path) -> None:
    prepared = prepare_fuse(pair.base, pair.tuned, output=tmp_path / "out", method=Dare(), settings=Settings(seed=3))
    live = LiveFuse(prepared, None, device="cpu")
    contenders = [Contender.parse(text, None) for text in ("task-arithmetic:scale=0.25", "dare:sparsity=0.5")]
    base, tuned, quarter, dare = compare(live, suite, contenders, seeds=(3, 4))
    for entry, folder in ((base, pair.base), (tuned, pair.tuned)):
        assert entry.scores[0].measures == evaluate(folder, suite, device="cpu").measures
    live.write(TaskArithmetic(scale=0.25), provenance=None)
    assert quarter.scores[0].measures == evaluate(tmp_path / "out", suite, device="cpu").measures
    assert (quarter.strength, len(quarter.scores), len(dare.scores)) == (0.25, 1, 2)
    live.reseed(4)
    live.write(Dare(sparsity=0.5), provenance=None, overwrite=True)
    assert dare.scores[1].measures == evaluate(tmp_path / "out", suite, device="cpu").measures
    assert dare.scores[0] != dare.scores[1]
    table = table_of([base, tuned, quarter, dare])
    assert list(table.columns) == ["method", "strength", "prose", "quiz", "Avg", "H-score"]
    assert "±" in table.rows[3][2]
    read = list(csv.DictReader(io.StringIO(table.csv())))
    values = [scores.measures["prose"] for scores in dare.scores]
    assert float(read[3]["prose"]) == pytest.approx(np.mean(values), abs=0.01)
    assert float(read[3]["prose deviation"]) == pytest.approx(np.std(values, ddof=1), abs=0.01)


def test_the_best_strength_is_chosen_on_another_suite(pair: Pair, suite, tmp_path: Path) -> None:
    prepared = prepare_fuse(pair.base, pair.tuned, output=tmp_path / "out", method=Dare())
    live = LiveFuse(prepared, None, device="cpu")
    pick = Pick.parse("prose", suite.measures())
    strengths = (0.0, 0.5, 1.0)
    best = Best(suite=suite, pick=pick, strengths=strengths, weights=())
    *_, entry = compare(live, suite, [Contender.parse("task-arithmetic", None)], seeds=(0,), best=best)
    found = {}
    for strength in strengths:
        live.set(TaskArithmetic(scale=strength))
        found[strength] = evaluate(live.live, suite).measures["prose"]
    assert entry.strength == max(found, key=lambda strength: found[strength])
    with pytest.raises(MethodError, match="two-sided curvature needs general samples"):
        Contender.parse("two-sided", None)


def test_lists_of_methods() -> None:
    assert split_methods("ties,dare:sparsity=0.8,rescale=l1 tailor; two-sided") == [
        *("ties", "dare:sparsity=0.8,rescale=l1", "tailor", "two-sided")
    ]


def test_a_table_is_written_for_papers_and_pages(tmp_path: Path) -> None:
    table = Table(columns=["method", "a_b"], rows=[["γ|x", "1.00 ± 0.50"], ["50 %", "–"]])
    assert table.markdown() == "| method | a_b |\n|---|--:|\n| γ\\|x | 1.00 ± 0.50 |\n| 50 % | – |\n"
    latex = table.latex()
    assert r"method & a\_b \\" in latex
    assert r"$\gamma$|x & 1.00 $\pm$ 0.50 \\" in latex
    assert r"50 \% & -- \\" in latex
    assert table.csv() == "method,a_b,a_b deviation\nγ|x,1.00,0.50\n50 %,,\n"
    for name in ("t.md", "t.tex", "t.csv"):
        table.write(tmp_path / name)
        assert (tmp_path / name).stat().st_size
    with pytest.raises(DataError, match="is not a kind of table that sculpt writes"):
        refuse_tables([tmp_path / "t.xlsx"], [], overwrite=False)


@pytest.mark.parametrize("columns", [["method", "strength", "a"], ["setting", "value"], ["m", "a", MEAN_OF_SIDES]])
@pytest.mark.parametrize("ending", ["md", "tex", "csv"])
def test_a_table_replaces_none_but_a_table_and_that_when_it_is_told_to(
    columns: list[str], ending: str, tmp_path: Path
) -> None:
    file = tmp_path / f"t.{ending}"
    table = Table(columns=columns, rows=[["1"] * len(columns)])
    table.write(file)
    with pytest.raises(OutputError, match="exists"):
        refuse_tables([file], [], overwrite=False)
    refuse_tables([file], [], overwrite=True)
    table.write(file, overwrite=True)
    with pytest.raises(OutputError, match="is the input"):
        refuse_tables([file], [file], overwrite=True)
    for other in ("model,a,b\nx,1,2\n", "# Read me\n\n| a | b |\n|---|---|\n", "\\section{A}\nmethod\n", ""):
        file.write_text(other)
        with pytest.raises(OutputError, match="not a table that sculpt wrote"):
            refuse_tables([file], [], overwrite=True)


def test_scores_from_elsewhere_get_the_papers_means(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    tasks = [f"task{k}" for k in range(8)]
    file.write_text("\ufeff" + ",".join(["model", *tasks, "flickr30k"]) + "\n" + ",".join(PAPER) + "\n\n")
    table, values = scores_from_table(read_lines(file), ["flickr30k"], source="scores.csv")
    assert table.rows[0][-3:-1] == ["92.64", "88.29"]
    assert values[0]["measures"]["target"] == 83.4
    for lines, words in (
        ([["m", "a"], ["x", "1"]], "has no task `flickr30k`"),
        ([["m", "flickr30k", "a"], ["x", "1", "much"]], "`much`, the score of `x` in `a`, is not a number"),
        ([["m", "flickr30k", "a"], ["x", "1"]], "has 2 cells, expected 3"),
    ):
        with pytest.raises(DataError, match=words):
            scores_from_table(lines, ["flickr30k"], source="s")
