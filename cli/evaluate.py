"""`sculpt eval` and `sculpt gate`: how good a model is, and whether that is good enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluate.options import Scoring
from .flags import FlagGroup, with_options
from .options import AsJson, refuse_missing

if TYPE_CHECKING:
    from ..drift.movement import Movement
    from ..evaluate.evaluate import SuiteScores
    from ..evaluate.flips import Flips
    from ..evaluate.suite import Suite

EVAL_HELP = """Score models on a suite of tasks: what they could do before (P), and what they were fine-tuned on (T).

Every task gives one score in [0, 100]. Avg is their mean; the H-score is the harmonic mean of the two sides' means.

--against says how far a model's next tokens are from those of a base, without labels: on the suite's tasks and on
--data, or on every kind of the general set. With a suite it also says which answers changed: what was forgotten, and
what was learned.

**Examples**

    sculpt eval sft-two-sided/ --suite suite.yaml

    sculpt eval base/ sft/ sft-two-sided/ --suite suite.yaml --json > scores.json

    sculpt eval sft-two-sided/ --against base/

    sculpt eval sft-two-sided/ --against base/ --suite suite.yaml --tuned sft/ --data chats.jsonl
"""
GATE_HELP = """Exit with code 3 and a sentence if a model does not reach a limit: for continuous integration.

If the gate cannot run, the exit code is 1, as for every command that fails.

A limit names a task, `pretrained`, `target`, `avg` or `h-score`, and a number, or a fraction of the base's or the
fine-tune's score. --max-forgotten limits how many answers were lost: those that the base had right and the model has
wrong, without those that guessing explains. It holds for the worst of the pre-trained tasks.

**Examples**

    sculpt gate sft-two-sided/ --suite suite.yaml --min h-score=0.9*base --base base/

    sculpt gate sft-two-sided/ --suite suite.yaml --min 'target>=0.97*tuned' --tuned sft/ --min prose=40

    sculpt gate sft-two-sided/ --suite suite.yaml --base base/ --max-forgotten 2%
"""

NOT_PASSED = 3  # the exit code of a gate that was judged; one that could not be run has 1, as any failure
Model = Annotated[Path, typer.Argument(help="The checkpoint to score.")]
Models = Annotated[list[Path], typer.Argument(help="The checkpoint to score, or several.")]
SuiteFile = Annotated[Path, typer.Option("--suite", help="The suite, a YAML file.")]


def eval_command(
    models: Models,
    suite: Annotated[Path | None, typer.Option("--suite", help="The suite, a YAML file.")] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="A base: say how far each model is from it.")
    ] = None,
    tuned: Annotated[
        Path | None, typer.Option("--tuned", help="The fine-tune: say how much of it was kept, and what was healed.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Data for the comparison with the base; repeatable.")
    ] = None,
    json: AsJson = False,
    *,
    scoring: Scoring,
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
    from ..evaluate.flips import flips

    read = None if suite is None else read_suite(suite)
    found = {} if read is None else {str(model): scored(model, read, scoring) for model in models}
    if not json and len(found) == 1:
        for scores in found.values():
            show_scores(scores)
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
                flipped = flips(base, found[str(model)], third)
                if not json:
                    show_flips(flipped, read.file, with_tuned=third is not None)
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
            help="Limit for the answers of a pre-trained task that the base had right and the model has wrong, such as "
            "2%, without those that guessing explains.",
        ),
    ] = None,
    base: Annotated[Path | None, typer.Option("--base", help="The model called `base` in a limit.")] = None,
    tuned: Annotated[Path | None, typer.Option("--tuned", help="The model called `tuned` in a limit.")] = None,
    json: AsJson = False,
    *,
    scoring: Scoring,
) -> None:
    """Score a model, and those that it is compared with; exit 3 unless every limit is reached."""
    from ..fusion.errors import MethodError
    from .console import out, print_json, quiet_libraries, say
    from .progress import progress_bar

    refuse_missing([model, *filter(None, (base, tuned))], [suite])
    if not limits and max_forgotten is None:
        raise MethodError("a gate needs a limit, `--min` or `--max-forgotten`")
    quiet_libraries()
    from ..evaluate.release import gate

    found = gate(
        model,
        suite,
        limits or (),
        max_forgotten=max_forgotten,
        base=base,
        tuned=tuned,
        scoring=scoring,
        bars=progress_bar,
    )
    if json:
        print_json(found.as_json())
    elif found.most is not None:
        show_flips(found.flips, suite, with_tuned=tuned is not None)
    for holds, sentence in found.sentences:
        (say if json else out)(f"{'passed' if holds else 'failed'}: {sentence}")
    if not found.passed:
        raise typer.Exit(NOT_PASSED)


def show_flips(found: Sequence[Flips], suite: Path, *, with_tuned: bool) -> None:
    """Show how answers flipped; tasks whose answers are not right or wrong are named."""
    from ..evaluate.flips import counted_tasks, table_of_flips
    from ..evaluate.suite import read_suite
    from .console import say, show_table

    read = read_suite(suite)
    if found:
        show_table(table_of_flips(found, with_tuned=with_tuned))
    others = sorted({name for _, name, _ in read.tasks()} - set(counted_tasks(read)))
    if others:
        say(f"note: answers to {', '.join(others)} are not right or wrong, so they are not compared one by one")


def moved(model: Path, base: Path, data: list[Path], suite: Suite | None, scoring: Scoring) -> Movement:
    """Return how far a model is from its base, with a bar meanwhile."""
    from .console import quiet_libraries
    from .progress import progress_bar

    quiet_libraries()
    from ..drift.reader import HowToRun
    from ..evaluate.against import moved_from

    how = HowToRun(device=scoring.device, dtype=scoring.dtype)
    with progress_bar(f"comparing {model} with {base}", unit="samples") as report:
        return moved_from(base, model, how, data=data, suite=suite, progress=report)


def scored(model: Path, suite: Path | Suite, scoring: Scoring) -> SuiteScores:
    """Return a model's scores, with a bar while they are taken."""
    from .console import quiet_libraries
    from .progress import progress_bar

    quiet_libraries()
    from ..evaluate.evaluate import evaluate

    with progress_bar(f"scoring {model}", unit="tasks") as report:
        return evaluate(model, suite, **scoring.arguments(), progress=report)


def show_scores(scores: SuiteScores) -> None:
    """Print a table of the tasks, and the means."""
    from .console import say, show_table

    show_table(scores.table(), text=5)
    if not scores.has_both_sides:
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
    groups = {"scoring": FlagGroup(of=Scoring, panel="Run")}
    app.command("eval", help=EVAL_HELP)(with_options(**groups)(eval_command))
    app.command("gate", help=GATE_HELP)(with_options(**groups)(gate_command))
