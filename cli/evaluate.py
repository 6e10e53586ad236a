"""`sculpt eval` and `sculpt gate`: how good a model is, and whether that is good enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..fusion.errors import DataError
from .flags import FlagGroup, with_options
from .options import AsJson

if TYPE_CHECKING:
    from ..evaluate.evaluate import SuiteScores
    from ..evaluate.suite import Suite

EVAL_HELP = """Score a model on a suite of tasks: what it could do before (P) and what it was fine-tuned on (T).

Every task gives one score in [0, 100]. Avg is their mean; the H-score is the harmonic mean of the two sides' means.

**Examples**

    sculpt eval sft-two-sided/ --suite suite.yaml

    sculpt eval base/ sft/ sft-two-sided/ --suite suite.yaml --json > scores.json
"""
GATE_HELP = """Exit 3, with a sentence, when a model falls short of a limit: for continuous integration.

A gate that could not be run exits 1, as every command that fails.

A limit names a task, `pretrained`, `target`, `avg` or `h-score`, and a number, or a share of the base's or the
fine-tune's own score.

**Examples**

    sculpt gate sft-two-sided/ --suite suite.yaml --min h-score=0.9*base --base base/

    sculpt gate sft-two-sided/ --suite suite.yaml --min 'target>=0.97*tuned' --tuned sft/ --min prose=40
"""

NOT_PASSED = 3  # the exit code of a gate that was judged; one that could not be run has 1, as any failure
Model = Annotated[Path, typer.Argument(help="The checkpoint to score.")]
Models = Annotated[list[Path], typer.Argument(help="The checkpoint to score, or several.")]
SuiteFile = Annotated[Path, typer.Option("--suite", help="The suite, a YAML file.")]


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How models are run.

    Attributes:
        device: auto, cpu, cuda, cuda:1, mps ….
        dtype: Of the forward; auto is float32 on a CPU, the stored dtype elsewhere.
        batch_size: In place of the suite's.
        memory: What the weights may fill, such as 12GB; a model that does not fit is streamed. Default: what is free.
    """

    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise DataError(f"`batch_size` must be at least 1, got {self.batch_size}", options=["batch_size"])

    def arguments(self) -> dict[str, Any]:
        """Return them as `evaluate` takes them."""
        from ..fusion.checkpoint.output.layout import parse_size

        return {
            "device": self.device,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "memory_bytes": parse_size(self.memory) if self.memory else None,
        }


def eval_command(models: Models, suite: SuiteFile, json: AsJson = False, *, scoring: ScoringOptions) -> None:
    """Score one model, or several side by side."""
    from .console import print_json

    refuse_missing(suite)
    found = {str(model): scored(model, suite, scoring) for model in models}
    if json:
        content = [{"model": name, **scores.as_json()} for name, scores in found.items()]
        print_json(content[0] if len(content) == 1 else {"models": content})
    elif len(found) == 1:
        for name, scores in found.items():
            show_scores(name, scores)
    else:
        show_side_by_side(found)


def gate_command(
    model: Model,
    suite: SuiteFile,
    limits: Annotated[list[str], typer.Option("--min", help="A limit, such as h-score=0.9*base; repeatable.")],
    base: Annotated[Path | None, typer.Option("--base", help="What `base` in a limit stands for.")] = None,
    tuned: Annotated[Path | None, typer.Option("--tuned", help="What `tuned` in a limit stands for.")] = None,
    json: AsJson = False,
    *,
    scoring: ScoringOptions,
) -> None:
    """Score a model, and those that it is compared with; exit 1 unless every limit is reached."""
    from ..evaluate.gate import Limit, judge
    from ..evaluate.suite import read_suite
    from ..fusion.errors import MethodError
    from .console import out, print_json, say

    refuse_missing(suite)
    parsed = [Limit.parse(limit) for limit in limits]
    read = read_suite(suite)
    given = {"base": base, "tuned": tuned}
    for limit in parsed:
        limit.check(read.measures())
        if limit.of and given[limit.of] is None:
            raise MethodError(f"`{limit.text}` needs `--{limit.of}`")
    others: dict[str, SuiteScores] = {}
    for name, path in given.items():
        if path is not None and any(limit.of == name for limit in parsed):
            others[name] = scored(path, read, scoring)
    own = scored(model, read, scoring)
    verdicts = judge(parsed, own.measures, {name: scores.measures for name, scores in others.items()})
    passed = all(verdict.passed for verdict in verdicts)
    if json:
        print_json(
            {
                "passed": passed,
                "limits": [
                    {"limit": v.limit.text, "score": v.score, "least": v.least, "passed": v.passed} for v in verdicts
                ],
                "model": own.as_json(),
                **{name: scores.as_json() for name, scores in others.items()},
            }
        )
    for verdict in verdicts:
        (say if json else out)(f"{'passed' if verdict.passed else 'failed'}: {verdict.sentence()}")
    if not passed:
        raise typer.Exit(NOT_PASSED)


def scored(model: Path, suite: Path | Suite, scoring: ScoringOptions) -> SuiteScores:
    """Return a model's scores, with a bar while they are taken."""
    from .console import progress_bar, quiet_libraries

    quiet_libraries()
    from ..evaluate.evaluate import evaluate

    with progress_bar(f"scoring {model}", unit="tasks") as report:
        return evaluate(model, suite, **scoring.arguments(), progress=report)


def show_scores(title: str, scores: SuiteScores) -> None:
    """Print a table of the tasks, and the means."""
    from .console import out, say, table

    rows = []
    for task in scores.tasks:
        others = [f"{name} {value:.4g}" for name, value in task.figures.items()]
        rows.append(
            [task.name, task.side, task.scorer, str(task.num_rows), f"{task.score:.2f}", ", ".join(others) or "–"]
        )
    table(f"{title}: {scores.suite}", ["task", "side", "scorer", "rows", "score", "also"], rows)
    measures = scores.measures
    if scores.has_both_sides:
        out(
            f"pre-trained {measures['pretrained']:.2f}, target {measures['target']:.2f}; Avg {measures['avg']:.2f}, "
            f"H-score {measures['h-score']:.2f}, mean of the two sides {measures['source-target-avg']:.2f}"
        )
    else:
        say("Avg and H-score need tasks on both sides, `pretrained:` and `target:`")


def show_side_by_side(found: Mapping[str, SuiteScores]) -> None:
    """Print a row a task and mean, a column a model."""
    from .console import table

    first = next(iter(found.values()))
    means = {"pretrained": "general: mean", "target": "target: mean", "avg": "Avg", "h-score": "H-score"}
    titles = {
        task.name: f"{'general' if task.side == 'pretrained' else task.side}: {task.name}" for task in first.tasks
    }
    titles |= {name: title for name, title in means.items() if name in first.measures}
    rows = [[title, *(f"{scores.measures[name]:.2f}" for scores in found.values())] for name, title in titles.items()]
    table(first.suite, ["score", *found], rows)


def refuse_missing(file: Path) -> None:
    """Refuse a file that is not there, before anything heavy is loaded."""
    if not file.exists():
        raise DataError(f"`{file}` does not exist")


def register(app: typer.Typer) -> None:
    """Add `eval` and `gate`."""
    groups = {"scoring": FlagGroup(of=ScoringOptions, panel="Run")}
    app.command("eval", help=EVAL_HELP)(with_options(**groups)(eval_command))
    app.command("gate", help=GATE_HELP)(with_options(**groups)(gate_command))
