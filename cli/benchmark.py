"""`sculpt benchmark` and `sculpt scores`: the papers' tables, of models that are scored here or were elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluate.options import CHOICES, WEIGHTS, Scoring
from ..fusion.arithmetic.two_sided import Protection
from ..fusion.plan.options import Policies, Selection
from ..fusion.run.calibration import Calibration
from ..fusion.run.settings import Settings
from .evaluate import SuiteFile
from .flags import FlagGroup, given_flags, with_options
from .options import (
    CALIBRATION,
    POLICIES,
    PROTECTION,
    SELECTION,
    SETTINGS,
    AsJson,
    BasePath,
    TunedPath,
    protection_of,
    refuse_missing,
)

if TYPE_CHECKING:
    from ..fusion.table import Table

HELP = """Compare methods on a suite in a table as papers have it: a row for each method; all tasks, Avg and H-score.

The base (zero-shot) and the fine-tune come first. Each method has its default strength, or with `--choose-on` the best
one on a suite of other samples. Random methods are scored with each of the `--seeds`, and shown as mean ± deviation.

**Examples**

    sculpt benchmark base/ sft/ --suite suite.yaml --data train.jsonl -o table.md -o table.tex -o table.csv

    sculpt benchmark base/ sft/ --suite suite.yaml --methods dare:sparsity=0.8,adadare:gamma=0.7 --seeds 3

    sculpt benchmark base/ sft/ --suite test.yaml --choose-on validation.yaml --data train.jsonl --protect default
"""
SCORES_HELP = """Turn scores from elsewhere into Avg, H-score, and the means of Source and Target.

The CSV file has the names of the tasks in its first line, then a line for each model, which begins with its name.

**Examples**

    sculpt scores scores.csv --target flickr30k

    sculpt scores scores.csv --target iconqa --target coco -o table.tex
"""
Tables = Annotated[
    list[Path] | None,
    typer.Option("--output", "-o", help="File for the table, .csv, .md or .tex; repeatable.", metavar="FILE"),
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace earlier tables.")]


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared.

    Attributes:
        methods: Methods, separated by spaces or semicolons, or by commas if none has several options. Default: ties,
            dare, tailor, adadare in both allocations, and with --protect two-sided.
        seeds: Number of seeds, from --seed on, with which random methods are scored.
        choose_on: A suite to choose the strength of each method on. Default: each has its default strength.
        gamma: Strengths to try with --choose-on.
        protect_weights: Weights of the protection to try with --choose-on.
        pick: What is best: h-score, avg or a task of the suite; or target>=0.97*tuned. Default: h-score.
    """

    methods: str | None = None
    seeds: int = 1
    choose_on: Path | None = None
    gamma: str = CHOICES
    protect_weights: str = WEIGHTS
    pick: str = "h-score"


def split_methods(text: str) -> list[str]:
    """Return the methods of a list; a comma before `option=value` goes on with the options of a method."""
    found: list[str] = []
    for part in text.replace(";", " ").replace(",", " ").split():
        if "=" in part and ":" not in part and found:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def benchmark_command(
    ctx: typer.Context,
    base: BasePath,
    tuned: TunedPath,
    suite: SuiteFile,
    output: Tables = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    *,
    compared: CompareOptions,
    calibration: Calibration,
    protection: Protection,
    scoring: Scoring,
    selection: Selection,
    policies: Policies,
    settings: Settings,
) -> None:
    """Score every row, show the table, and write it."""
    from .console import quiet_libraries, say
    from .progress import progress_bar

    refuse_missing([base, tuned], [suite, *calibration.files()])
    if compared.choose_on is None:
        _refuse_idle(compared)
    quiet_libraries()
    from ..evaluate.resume import files_of
    from ..evaluate.suite import read_suite
    from ..fusion.table import refuse_tables

    suites = [suite, *([compared.choose_on] if compared.choose_on else [])]
    read_files = [file for each in suites for file in (each, *files_of(read_suite(each)))]
    refuse_tables(output or (), [base, tuned, *read_files, *calibration.files()], overwrite=overwrite)
    from ..evaluate.benchmark import benchmark

    found = benchmark(
        base,
        tuned,
        suite,
        methods=split_methods(compared.methods) if compared.methods else (),
        seeds=compared.seeds,
        choose_on=compared.choose_on,
        strengths=compared.gamma,
        weights=compared.protect_weights,
        pick=compared.pick,
        calibration=calibration,
        protection=protection_of(protection, calibration, given_flags(ctx)),
        scoring=scoring,
        settings=replace(settings, selection=selection, policies=policies),
        bars=progress_bar,
    )
    _show(found.table(), found.as_json() if json else None)
    _write(found.table(), output, overwrite=overwrite)
    if found.chosen_on_itself:
        say(
            "note: strengths were chosen on the same suite that is reported, so methods with a strength look "
            "better than they are"
        )


def _refuse_idle(compared: CompareOptions) -> None:
    from ..fusion.errors import MethodError

    unset = CompareOptions()
    for name in ("gamma", "protect_weights", "pick"):
        if getattr(compared, name) != getattr(unset, name):
            flag = name.replace("_", "-")
            raise MethodError(f"`--{flag}` has no effect without `--choose-on`, which chooses strengths")


def scores_command(
    file: Annotated[Path, typer.Argument(help="A CSV file with a line for each model and a column for each task.")],
    target: Annotated[
        list[str], typer.Option(help="A task that the models were fine-tuned on; repeatable. All others are general.")
    ],
    output: Tables = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Show the table with its means."""
    from ..evaluate.given_scores import read_lines, scores_from_table
    from ..fusion.table import refuse_tables

    refuse_tables(output or (), [file], overwrite=overwrite)
    table, values = scores_from_table(read_lines(file), target, source=file.name)
    _show(replace(table, title=file.name), {"rows": values} if json else None)
    _write(table, output, overwrite=overwrite)


def _show(shown: Table, plain: dict[str, Any] | None) -> None:
    """Print a table, or its plain values, before anything can go wrong with files."""
    from .console import print_json, show_table

    if plain is None:
        show_table(shown)
    else:
        print_json(plain)


def _write(shown: Table, output: list[Path] | None, *, overwrite: bool) -> None:
    from .console import say

    for file in output or ():
        shown.write(file, overwrite=overwrite)
        say(f"wrote {file}")


def register(app: typer.Typer) -> None:
    """Add `benchmark` and `scores`."""
    groups = {
        "compared": FlagGroup(of=CompareOptions, panel="What is compared"),
        "calibration": replace(
            CALIBRATION,
            flags={**CALIBRATION.flags, "batch_size": "calibration_batch_size"},
            leave_out=(*CALIBRATION.leave_out, "protect_check"),
        ),
        "protection": PROTECTION,
        "scoring": FlagGroup(of=Scoring, panel="Scoring"),
        "selection": SELECTION,
        "policies": POLICIES,
        "settings": SETTINGS.only("seed", "threads"),
    }
    app.command("benchmark", help=HELP)(with_options(**groups)(benchmark_command))
    app.command("scores", help=SCORES_HELP)(scores_command)
