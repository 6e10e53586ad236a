"""`sculpt repair`: what we recommend, in one word."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from ..fusion.arithmetic.two_sided import Protection
from ..fusion.methods import TwoSided
from ..fusion.plan.options import Policies, Selection
from ..fusion.run.calibration import SHIPPED, Calibration
from ..fusion.run.settings import Settings
from .evaluate import ScoringOptions
from .flags import FlagGroup, given_flags, with_options
from .options import (
    CALIBRATION,
    POLICIES,
    PROTECTION,
    SELECTION,
    SETTINGS,
    BasePath,
    DryRun,
    Target,
    TunedPath,
)

HELP = """Give a fine-tune back what it forgot, and keep what it learned: two-sided curvature, with no retraining.

Each delta is kept where the task's inputs go and given up where general text goes. Samples of the task, `--data`, say
the first; without, the deltas tell it themselves. A general set that ships says the second; `--protect` names your own.
With a `--suite`, a few weights λ are tried and the best by `--pick` is written. A page about the result lies beside it.

**Examples**

    sculpt repair base/ sft/ --data train.jsonl

    sculpt repair base/ sft/

    sculpt repair base/ sft/ --data train.jsonl --suite suite.yaml --pick 'target>=0.97*tuned'

    sculpt repair org/base org/sft --data train.jsonl --protect general.jsonl -o repaired/
"""
WITH_DATA, WITHOUT = "0.3,1,3", "0.03,0.1,0.3"  # around the λ that serves best with samples of the task, and without


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How λ is chosen.

    Attributes:
        suite: Tasks to choose it by, a YAML file; `sculpt suite init` writes one. Default: λ is as it serves most.
        pick: The best h-score, avg or task; or target>=0.97*tuned, the best `pretrained` within that.
        protect_weight: λ, or those that are tried. Default: 1, of 0.3,1,3; without samples of the task 0.1, of
            0.03,0.1,0.3.
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
    scoring: ScoringOptions,
    selection: Selection,
    policies: Policies,
    settings: Settings,
) -> None:
    """Protect the base, at the best λ of a suite if there is one; report."""
    from ..evaluate.report import PAGE
    from ..fusion.checkpoint import find_model
    from ..fusion.checkpoint.output.guard import refuse_inputs, refuse_output
    from ..fusion.checkpoint.output.steps import steps_of
    from ..fusion.checkpoint.output.workspace import identity_of
    from ..fusion.launch import launched
    from .console import out
    from .fuse import run_fuse
    from .report import write_report

    made = output or find_model(tuned).beside("-repaired")
    page = made.with_name(f"{made.name}-report.html")
    if calibration.protect is None:
        calibration = replace(calibration, protect=SHIPPED)
    given, scores = given_flags(ctx), []
    inputs = [base, tuned, *calibration.files(), *([choice.suite] if choice.suite else [])]
    for place in (made, page):
        refuse_inputs(place, inputs)
    with nullcontext() if dry_run else steps_of(page, made_by="repair") as steps:
        refuse_output(
            page, inputs, PAGE, overwrite=overwrite or dry_run or (steps is not None and steps.has_appeared(page))
        )
        if choice.suite is None:
            _refuse_idle(choice)
            weight = None if choice.protect_weight is None else _number(choice.protect_weight)
            run_fuse(
                base,
                [tuned],
                method=TwoSided(),
                target=Target(output=made, overwrite=overwrite, dry_run=dry_run),
                settings=replace(settings, device=scoring.device),
                selection=selection,
                policies=policies,
                calibration=calibration,
                protection=replace(protection, weight=weight),
                given=given,
                json=False,
                steps=steps,
            )
        else:
            from .sweep import GridOptions, run_sweep_command

            has_samples = calibration.data is not None or calibration.hessian is not None
            tables = run_sweep_command(
                base,
                tuned,
                choice.suite,
                output=made.with_name(f"{made.name}-sweep"),
                model=made,
                overwrite=overwrite,
                json=False,
                charts=False,
                grid=GridOptions(
                    method=[TwoSided.name],
                    pick=choice.pick or "h-score",
                    protect_weight=choice.protect_weight or (WITH_DATA if has_samples else WITHOUT),
                ),
                calibration=calibration,
                protection=protection,
                scoring=scoring,
                settings=replace(settings, selection=selection, policies=policies),
                given=given,
                steps=steps,
                dry_run=dry_run,
            )
            assert tables is not None
            scores = [tables / "sweep.json"]
        if dry_run or not launched().is_first:  # of several processes one writes the page
            return
        if steps is None or not steps.is_made(page, {"of": identity_of(made)}, PAGE, overwrite=overwrite):
            write_report(made, page, scores, overwrite=overwrite)
    out(f"{made} is the repaired model, {page} a page about it")
    out(f"what it answers now: sculpt compare {base} {tuned} {made} --prompts FILE")


def _number(text: str) -> float:
    from ..fusion.errors import MethodError

    try:
        return float(text)
    except ValueError as error:
        raise MethodError(f"`--protect-weight` is a number, got `{text}`") from error


def _refuse_idle(choice: Choice) -> None:
    from ..fusion.errors import MethodError

    if choice.pick is not None:
        raise MethodError("`--pick` has no effect without `--suite`, by whose scores it chooses")
    if "," in (choice.protect_weight or ""):
        raise MethodError("several λ are tried on a suite", hint="`--suite` names one; `sculpt suite init` writes one")


def register(app: typer.Typer) -> None:
    """Add `repair`."""
    groups = {
        "choice": FlagGroup(of=Choice, panel="Choice of λ"),
        "calibration": replace(
            CALIBRATION, panel="Protection", flags={**CALIBRATION.flags, "batch_size": "calibration_batch_size"}
        ),
        "protection": replace(PROTECTION, leave_out=("weight",)),
        "scoring": FlagGroup(of=ScoringOptions, panel="Run"),
        "selection": SELECTION,
        "policies": POLICIES,
        "settings": SETTINGS.only("seed", "threads"),
    }
    app.command("repair", help=HELP)(with_options(**groups)(repair))
