"""`sculpt repair`: what we recommend, in one word."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluate.options import Scoring
from ..fusion.arithmetic.two_sided import Protection
from ..fusion.plan.options import Policies, Selection
from ..fusion.run.calibration import Calibration
from ..fusion.run.settings import Settings
from .flags import FlagGroup, given_flags, with_options
from .options import (
    CALIBRATION,
    POLICIES,
    PROTECTION,
    SELECTION,
    SETTINGS,
    BasePath,
    DryRun,
    TunedPath,
    protection_of,
    refuse_missing,
)

if TYPE_CHECKING:
    from ..evaluate.points import Sweep
    from ..fusion.checkpoint.output.steps import Steps
    from ..fusion.methods import Method

HELP = """Bring back what a fine-tune forgot, and keep what it learned: two-sided curvature, with no retraining.

Each change of a weight is kept where it matters for the task, and undone where it matters for general text. `--data`
names samples of the task; without them, the deltas stand in. The general text is a set that ships with sculpt;
`--protect` names your own. With a `--suite`, a few weights λ are tried, and the best one by `--pick` is written. A page
about the result is written beside it.

**Examples**

    sculpt repair base/ sft/ --data train.jsonl

    sculpt repair base/ sft/

    sculpt repair base/ sft/ --data train.jsonl --suite suite.yaml --pick 'target>=0.97*tuned'

    sculpt repair org/base org/sft --data train.jsonl --protect general.jsonl -o repaired/
"""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How λ is chosen.

    Attributes:
        suite: Tasks to choose λ by, a YAML file; `sculpt suite init` writes one. Without it, λ has its default.
        pick: What is best: h-score, avg or a task; or target>=0.97*tuned, the best `pretrained` with that limit.
        protect_weight: λ; with a suite, the values to try. Default: 1, or 0.3,1,3 with a suite; without samples of the
            task 0.1, or 0.03,0.1,0.3.
    """

    suite: Path | None = None
    pick: str | None = None
    protect_weight: Annotated[str | None, typer.Option(metavar="N[,N…]")] = None


def repair(
    ctx: typer.Context,
    base: BasePath,
    tuned: TunedPath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder. Default: TUNED-repaired, beside TUNED.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")] = False,
    dry_run: DryRun = False,
    *,
    choice: Choice,
    calibration: Calibration,
    protection: Protection,
    scoring: Scoring,
    selection: Selection,
    policies: Policies,
    settings: Settings,
) -> None:
    """Protect the base, at the best λ of a suite if there is one; report."""
    from ..evaluate.repair import places_of, refuse_without_suite, repair
    from .console import out, quiet_libraries

    if choice.suite is None:
        refuse_without_suite(choice.pick, choice.protect_weight)
    calibration = calibration.protecting()
    refuse_missing([base, tuned], [*filter(None, (choice.suite,)), *calibration.files()])
    given = given_flags(ctx)
    quiet_libraries()
    from ..fusion.checkpoint.output.steps import steps_of
    from ..fusion.launch import launched

    protects = protection_of(protection, calibration, given - {"protect_weight"})
    options: dict[str, Any] = {
        "output": output,
        "suite": choice.suite,
        "pick": choice.pick,
        "weights": choice.protect_weight,
        "calibration": calibration,
        "protection": protects,
        "scoring": scoring,
        "settings": replace(settings, selection=selection, policies=policies),
        "overwrite": overwrite,
    }
    page = places_of(tuned, output)[1]
    with nullcontext() if dry_run else steps_of(page, made_by="repair") as steps:
        found = repair(base, tuned, **options, steps=steps, dry_run=dry_run, fuse=_fuse, sweep=_sweep)
    if dry_run or not launched().is_first:
        return
    out(f"{found.model} is the repaired model, {found.page} a page about it")
    out(f"what it answers now: sculpt compare {base} {tuned} {found.model} --prompts FILE")


def _fuse(
    base: Path,
    tuned: Path,
    *,
    output: Path,
    method: Method,
    calibration: Calibration,
    protection: Protection,
    settings: Settings,
    overwrite: bool,
    progress: object,
    steps: Steps | None = None,
    dry_run: bool = False,
) -> None:
    """Fuse as `fuse` does, and show it; or show the plan."""
    from ..api import prepare_fuse
    from .fuse import run_prepared

    del progress  # there are bars of its own
    protected = replace(settings, protection=protection)
    may_exist = overwrite or dry_run or (steps is not None and steps.has_appeared(output))
    prepared = prepare_fuse(base, tuned, output=output, method=method, settings=protected, overwrite=may_exist)
    run_prepared(prepared, calibration, dry_run=dry_run, overwrite=overwrite, json=False, steps=steps)


def _sweep(base: Path, tuned: Path, suite: Path, *, dry_run: bool = False, **options: Any) -> Sweep | None:
    """Sweep as `sweep` does, and show it; or show the plan."""
    from .sweep import run_sweep_command

    return run_sweep_command(base, tuned, suite, json=False, charts=False, dry_run=dry_run, **options)


def register(app: typer.Typer) -> None:
    """Add `repair`."""
    groups = {
        "choice": FlagGroup(of=Choice, panel="Choice of λ"),
        "calibration": replace(
            CALIBRATION, panel="Protection", flags={**CALIBRATION.flags, "batch_size": "calibration_batch_size"}
        ),
        "protection": replace(PROTECTION, leave_out=("weight",)),
        "scoring": FlagGroup(of=Scoring, panel="Run"),
        "selection": SELECTION,
        "policies": POLICIES,
        "settings": SETTINGS.only("seed", "threads"),
    }
    app.command("repair", help=HELP)(with_options(**groups)(repair))
