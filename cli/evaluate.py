"""`sculpt eval` and `sculpt gate`: how good a model is, and whether that is good enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..fusion.errors import DataError
from .flags import FlagGroup, with_options
from .options import AsJson, refuse_missing

if TYPE_CHECKING:
    from ..evaluate.evaluate import SuiteScores
    from ..evaluate.flips import Flips
    from ..evaluate.suite import Suite
    from ..predict.movement import Movement

EVAL_HELP = """Score a model on a suite of tasks: what it could do before (P) and what it was fine-tuned on (T).

Every task gives one score in [0, 100]. Avg is their mean; the H-score is the harmonic mean of the two sides' means.

With --against, how far its next tokens are from a base's, which takes no labels: on the suite's tasks and on --data, or
else on every kind of the general set that ships. With a suite also which answers flipped: what was
forgotten, and what learned.

**Examples**

    sculpt eval sft-two-sided/ --suite suite.yaml

    sculpt eval base/ sft/ sft-two-sided/ --suite suite.yaml --json > scores.json

    sculpt eval sft-two-sided/ --against base/

    sculpt eval sft-two-sided/ --against base/ --suite suite.yaml --tuned sft/ --data chats.jsonl
"""
GATE_HELP = """Exit 3, with a sentence, when a model falls short of a limit: for continuous integration.

A gate that could not be run exits 1, as every command that fails.

A limit names a task, `pretrained`, `target`, `avg` or `h-score`, and a number, or a share of the base's or the
fine-tune's own score. --max-forgotten is a limit on single answers: what the base had right and the model has wrong, in
the worst of the pre-trained tasks, less what guessing explains.

**Examples**

    sculpt gate sft-two-sided/ --suite suite.yaml --min h-score=0.9*base --base base/

    sculpt gate sft-two-sided/ --suite suite.yaml --min 'target>=0.97*tuned' --tuned sft/ --min prose=40

    sculpt gate sft-two-sided/ --suite suite.yaml --base base/ --max-forgotten 2%
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


def eval_command(
    models: Models,
    suite: Annotated[Path | None, typer.Option("--suite", help="The suite, a YAML file.")] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="A base, and say how far each model is from it.")
    ] = None,
    tuned: Annotated[
        Path | None, typer.Option("--tuned", help="The fine-tune, and say how much of it stayed and what was healed.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Data on which to compare with the base; repeatable.")
    ] = None,
    json: AsJson = False,
    *,
    scoring: ScoringOptions,
) -> None:
    """Score one model, or several side by side, and say how far each is from its base."""
    from ..evaluate.suite import read_suite
    from ..fusion.errors import MethodError
    from .console import out, print_json
    from .fuse_view import show_moved

    if suite is None and against is None:
        raise MethodError("there is nothing to do without `--suite` or `--against`")
    if data and against is None:
        raise MethodError("`--data` has no effect without `--against`")
    if tuned is not None and (against is None or suite is None):
        raise MethodError("`--tuned` has no effect without `--against` and `--suite`")
    refuse_missing([*models, *filter(None, (against, tuned))], [*filter(None, (suite,)), *(data or ())])
    read = None if suite is None else read_suite(suite)
    found = {} if read is None else {str(model): scored(model, read, scoring) for model in models}
    if not json and len(found) == 1:
        for name, scores in found.items():
            show_scores(name, scores)
    elif not json and found:
        show_side_by_side(found)
    content: dict[str, dict[str, Any]] = {str(model): {"model": str(model)} for model in models}
    for name, scores in found.items():
        content[name] |= scores.as_json()
    if against is not None:
        base = None if read is None else scored(against, read, scoring)
        third = None if tuned is None or read is None else scored(tuned, read, scoring)
        for model in models:
            if not json and len(models) > 1:
                out(f"\n{model}")
            if read is not None and base is not None:
                flipped = flips_of(read, base, found[str(model)], third, json=json)
                content[str(model)]["flips"] = [one.as_json() for one in flipped]
            content[str(model)]["moved"] = moved(model, against, data or [], read, scoring).as_json()
            if not json:
                show_moved(content[str(model)]["moved"], held_out=read is None and not data)
    if json:
        all_of_them = list(content.values())
        print_json(all_of_them[0] if len(all_of_them) == 1 else {"models": all_of_them})


def gate_command(
    model: Model,
    suite: SuiteFile,
    limits: Annotated[
        list[str] | None, typer.Option("--min", help="A limit, such as h-score=0.9*base; repeatable.")
    ] = None,
    max_forgotten: Annotated[
        str | None,
        typer.Option(
            "--max-forgotten",
            metavar="PERCENT",
            help="Most that may be forgotten of a pre-trained task, such as 2%: of its answers, the base's right ones "
            "that are wrong now, less what guessing explains.",
        ),
    ] = None,
    base: Annotated[Path | None, typer.Option("--base", help="What `base` in a limit stands for.")] = None,
    tuned: Annotated[Path | None, typer.Option("--tuned", help="What `tuned` in a limit stands for.")] = None,
    json: AsJson = False,
    *,
    scoring: ScoringOptions,
) -> None:
    """Score a model, and those that it is compared with; exit 3 unless every limit is reached."""
    refuse_missing([model, *filter(None, (base, tuned))], [suite])
    from ..evaluate.flips import counted_tasks, parse_percent, worst
    from ..evaluate.gate import Limit, judge
    from ..evaluate.suite import read_suite
    from ..fusion.errors import MethodError
    from .console import out, print_json, say

    parsed = [Limit.parse(limit) for limit in limits or ()]
    most = None if max_forgotten is None else parse_percent(max_forgotten)
    read = read_suite(suite)
    given = {"base": base, "tuned": tuned}
    for limit in parsed:
        limit.check(read.measures())
        if limit.of and given[limit.of] is None:
            raise MethodError(f"`{limit.text}` needs `--{limit.of}`")
    if most is None and not parsed:
        raise MethodError("a gate needs a limit, `--min` or `--max-forgotten`")
    if most is not None and base is None:
        raise MethodError("`--max-forgotten` needs `--base`")
    if most is not None and not counted_tasks(read, "pretrained"):
        raise MethodError("`--max-forgotten` needs a task under `pretrained:` whose answers are right or wrong")
    others: dict[str, SuiteScores] = {}
    for name, path in given.items():
        if path is not None and (most is not None or any(limit.of == name for limit in parsed)):
            others[name] = scored(path, read, scoring)
    own = scored(model, read, scoring)
    verdicts = judge(parsed, own.measures, {name: scores.measures for name, scores in others.items()})
    passed = all(verdict.passed for verdict in verdicts)
    content: dict[str, Any] = {
        "limits": [{"limit": v.limit.text, "score": v.score, "least": v.least, "passed": v.passed} for v in verdicts],
        "model": own.as_json(),
        **{name: scores.as_json() for name, scores in others.items()},
    }
    told = [(verdict.passed, verdict.sentence()) for verdict in verdicts]
    if most is not None:
        found = flips_of(read, others["base"], own, others.get("tuned"), json=json)
        first = worst(found)
        holds = first.forgotten <= most + 1e-9
        passed = passed and holds
        content |= {
            "flips": [one.as_json() for one in found],
            "forgotten": {"worst": first.name, "percent": first.forgotten, "most": most, "passed": holds},
        }
        told.append(
            (
                holds,
                f"most was forgotten of {first.name}: {first.forgotten:.2f} % of its answers, {first.lost:.2f} % with "
                f"what guessing explains, which is {'within' if holds else 'above'} {most:g} %",
            )
        )
    if json:
        print_json({"passed": passed, **content})
    for holds, sentence in told:
        (say if json else out)(f"{'passed' if holds else 'failed'}: {sentence}")
    if not passed:
        raise typer.Exit(NOT_PASSED)


def flips_of(
    suite: Suite, base: SuiteScores, model: SuiteScores, tuned: SuiteScores | None, *, json: bool
) -> list[Flips]:
    """Return how answers flipped, and show it to people; tasks whose answers are not right or wrong are named."""
    from ..evaluate.flips import counted_tasks, flips
    from .console import out, say, table

    found = flips(base, model, tuned)
    if json:
        return found

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    columns = ["task", "side", "rows", "lost", "won", "by luck", "forgotten", "learned", "preserved"]
    columns += ["healed", "non-damage", "target retention"] if tuned is not None else []
    rows = []
    for one in found:
        kept = [one.lost, one.won, one.by_luck, one.forgotten, one.learned, one.preserved]
        if tuned is not None:
            is_target = one.side == "target"
            kept += [one.healed, None if is_target else one.retained, one.retained if is_target else None]
        rows.append([one.name, one.side, str(one.num_rows), *map(percent, kept)])
    if rows:
        table("answers that flipped from the base's, in percent", columns, rows)
        out(_means(found))
    others = sorted({name for _, name, _ in suite.tasks()} - set(counted_tasks(suite)))
    if others:
        say(f"note: answers to {', '.join(others)} are not right or wrong one by one, so none of them flips")
    return found


def _means(found: list[Flips]) -> str:
    """Return the means over the tasks of each side."""
    sides = {side: [one for one in found if one.side == side] for side in ("pretrained", "target")}
    general, target = sides["pretrained"], sides["target"]
    values = {
        "forgotten": [one.forgotten for one in general],
        "preserved": [one.preserved for one in general],
        "healed": [one.healed for one in general],
        "non-damage": [one.retained for one in general],
        "target retention": [one.retained for one in target],
    }
    means = {name: [value for value in some if value is not None] for name, some in values.items()}
    told = ", ".join(f"{name} {fmean(some):.2f} %" for name, some in means.items() if some)
    return f"means over tasks: {told}" if told else "no task of the pre-trained side was compared"


def moved(model: Path, base: Path, data: list[Path], suite: Suite | None, scoring: ScoringOptions) -> Movement:
    """Return how far a model is from its base, with a bar meanwhile."""
    from .console import quiet_libraries
    from .progress import progress_bar

    quiet_libraries()
    from ..evaluate.against import moved_from
    from ..predict.movement import HowToRun

    how = HowToRun(device=scoring.device, dtype=scoring.dtype)
    with progress_bar(f"comparing {model} with {base}", unit="samples") as report:
        return moved_from(base, model, how, data=data, suite=suite, progress=report)


def scored(model: Path, suite: Path | Suite, scoring: ScoringOptions) -> SuiteScores:
    """Return a model's scores, with a bar while they are taken."""
    from .console import quiet_libraries
    from .progress import progress_bar

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


def register(app: typer.Typer) -> None:
    """Add `eval` and `gate`."""
    groups = {"scoring": FlagGroup(of=ScoringOptions, panel="Run")}
    app.command("eval", help=EVAL_HELP)(with_options(**groups)(eval_command))
    app.command("gate", help=GATE_HELP)(with_options(**groups)(gate_command))
