"""`sculpt sweep`: which strength, by what the fused models score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..evaluate.options import STRENGTHS, WEIGHTS, Scoring
from ..fusion.arithmetic.two_sided import Protection
from ..fusion.plan.options import Policies, Selection
from ..fusion.run.calibration import Calibration
from ..fusion.run.settings import Settings
from .evaluate import SuiteFile
from .flags import FlagGroup, given_flags, with_options
from .fuse import command_line
from .options import (
    CALIBRATION,
    POLICIES,
    PROTECTION,
    SELECTION,
    SETTINGS,
    AsJson,
    BasePath,
    DryRun,
    TunedPath,
    protection_of,
    refuse_idle,
    refuse_missing,
)

if TYPE_CHECKING:
    from ..evaluate.points import Sweep
    from ..evaluate.sweeping import PreparedSweep

HELP = """Score many strengths and sparsities without writing models; then choose the best and write it.

It calibrates once. Each point takes a pass over the weights in memory, and an evaluation. The scored weights have the
bits that `sculpt fuse` would write. You can sweep several methods side by side.

**Examples**

    sculpt sweep base/ sft/ --suite suite.yaml --gamma 0.3:1.0:0.1

    sculpt sweep base/ sft/ --suite suite.yaml --sparsity 0.8,0.9,0.95 --method adadare --method dare --seeds 3

    sculpt sweep base/ sft/ --suite suite.yaml --sparsity 0.5,0.8,0.9 --method tailor --data train.jsonl

    sculpt sweep base/ sft/ --suite suite.yaml --gamma auto --pick h-score -o sweep/

    sculpt sweep base/ sft/ --suite suite.yaml --pick 'target>=0.97*tuned' --per-block -o sweep/

    sculpt sweep base/ sft/ --suite suite.yaml --data train.jsonl --protect default --pick h-score
"""


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """What is tried.

    Attributes:
        sparsity: Drop rates, such as 0.8,0.9,0.95, for methods that drop. Default: the method's own.
        seeds: Number of seeds, from --seed on, with which random methods are scored. Charts and picks use means.
        per_block: Also try a γ for each block, at the same expected distance to the base (AdaDARE-γ).
        pick: Choose a model and write it: the best h-score, avg or task; or target>=0.97*tuned, the best `pretrained`
            with that limit.
    """

    gamma: Annotated[
        str,
        typer.Option(
            "--gamma",
            help="Strengths: start:stop:step, a list, or `auto` for a search by golden section.",
            rich_help_panel="What is tried",
        ),
    ] = STRENGTHS
    sparsity: str | None = None
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="A method, with options as in `adadare:allocation=exact`; repeatable. Default: as `fuse` does.",
            rich_help_panel="What is tried",
        ),
    ] = None
    seeds: int = 1
    per_block: bool = False
    pick: str | None = None
    protect_weight: Annotated[
        str,
        typer.Option(
            help="With --protect, the weights λ to sweep: a list, or `auto`. γ is then that of --gamma, or 1.",
            rich_help_panel="Protection",
        ),
    ] = WEIGHTS


UNSET = {"strengths": None, "sparsities": (), "per_block": False, "seeds": 1, "model": None}  # where nobody says
# The weight is what is swept, where the base is protected.
HELD = replace(PROTECTION, leave_out=("weight",))


def sweep(
    ctx: typer.Context,
    base: BasePath,
    tuned: TunedPath,
    suite: SuiteFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for CSV, JSON, charts and, in `fused`, the model.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of an earlier sweep.")] = False,
    charts: Annotated[
        bool | None, typer.Option("--charts/--no-charts", help="Draw charts in text. Default: on a terminal.")
    ] = None,
    dry_run: DryRun = False,
    json: AsJson = False,
    *,
    grid: GridOptions,
    calibration: Calibration,
    protection: Protection,
    scoring: Scoring,
    selection: Selection,
    policies: Policies,
    settings: Settings,
) -> None:
    """Run a sweep, show it, and write what was asked for."""
    from .console import quiet_libraries

    given = given_flags(ctx)
    refuse_missing([base, tuned], [suite, *calibration.files()])
    quiet_libraries()
    from ..evaluate.strengths import Family

    families = [Family.parse(text) for text in grid.method or ()]
    if any(family.method.protects for family in families):
        calibration = calibration.protecting()
    given_of_it = given - {"protect_weight"} if calibration.protect else given
    protects = protection_of(protection, calibration, given_of_it)
    if families and protects is None and not any(family.method.uses_curvature for family in families):
        refuse_idle(calibration, families[0].method, given - {"batch_size"})  # which is of scoring here
    run_sweep_command(
        base,
        tuned,
        suite,
        json=json,
        charts=charts,
        methods=grid.method or (),
        strengths=grid.gamma if "gamma" in given else None,
        sparsities=grid.sparsity or (),
        weights=grid.protect_weight,
        per_block=grid.per_block,
        seeds=grid.seeds,
        pick=grid.pick,
        output=output,
        calibration=calibration,
        protection=protects,
        scoring=scoring,
        settings=replace(settings, selection=selection, policies=policies),
        overwrite=overwrite,
        dry_run=dry_run,
    )


def run_sweep_command(
    base: Path, tuned: Path, suite: Path, *, json: bool, charts: bool | None, dry_run: bool, **options: Any
) -> Sweep | None:
    """Run a sweep with the options of the function `sweep`, and show it; or show its plan."""
    from ..evaluate.sweeping import prepare_sweep
    from ..evaluate.sweeping import sweep as run
    from ..fusion.record.manifest import Manifest
    from .console import print_json, say
    from .fuse_view import show_moved
    from .progress import progress_bar

    if dry_run:
        left_out = ("overwrite", "steps", "bars")
        planned = {name: value for name, value in {**UNSET, **options}.items() if name not in left_out}
        _show_plan(prepare_sweep(base, tuned, suite, may_exist=lambda _: True, **planned), json=json)
        return None

    def told(swept: Sweep) -> None:
        if not json:
            show(swept, charts=charts)

    options |= {"command": command_line(), "shown": told, "bars": progress_bar}
    found = run(base, tuned, suite, **options)
    if found.output is not None and found.points:
        say(f"wrote table and figures to {found.output}")
    if found.picked is not None:
        best = found.picked
        say(f"{options['pick']}: {best.label} at {best.told_strength}, written to {found.model}")
        moved = None if found.model is None else Manifest.read(found.model).moved
        if moved is not None:
            show_moved(moved, aside=True)
    if json:
        print_json(found.as_json())
    return found


def _show_plan(plan: PreparedSweep, *, json: bool) -> None:
    """Print what a point takes, and how many there are, once the suite's rows can be read."""
    from ..data.rows import open_rows
    from ..evaluate.resume import files_of
    from ..evaluate.sweep import num_points
    from . import fuse_view
    from .console import out, print_json

    tasks = {file.name: len(open_rows(file)) for file in files_of(plan.suite)}
    points = num_points(plan.grid)
    if json:
        print_json({**fuse_view.plan_json(plan.prepared, plan.calibration), "points": points, "rows": tasks})
        return
    fuse_view.show_plan(plan.prepared, plan.calibration)
    out(f"suite {plan.suite.name}: {', '.join(f'{rows} rows of {name}' for name, rows in tasks.items())}")
    out(f"points {points or 'as many as the search takes'}, each scored on the suite")


def show(swept: Sweep, *, charts: bool | None = None) -> None:
    """Print every point, and on a terminal, or where they are asked for, the curves."""
    from ..evaluate.charts import TITLES, by_strength, pairs_of, shown_measures, terminal_chart
    from .console import answers, out, show_chart, show_table

    show_table(swept.table())
    for measure in shown_measures(swept):
        chart = terminal_chart(pairs_of(by_strength(swept, measure)), x="strength", room=answers.width)
        show_chart(f"{TITLES[measure]} against strength", chart, asked=charts)
    fuse = sum(point.fuse_seconds for point in swept.tried) / len(swept.tried)
    score = sum(point.score_seconds for point in swept.tried) / len(swept.tried)
    out(f"a point took {fuse:.2f} s to set the weights and {score:.2f} s to score them")


def register(app: typer.Typer) -> None:
    """Add `sweep`."""
    groups = {
        "grid": FlagGroup(of=GridOptions, panel="What is tried"),
        "calibration": replace(CALIBRATION, flags={**CALIBRATION.flags, "batch_size": "calibration_batch_size"}),
        "protection": HELD,
        "scoring": FlagGroup(of=Scoring, panel="Scoring"),
        "selection": SELECTION,
        "policies": POLICIES,
        "settings": SETTINGS.only("seed", "threads"),
    }
    app.command("sweep", help=HELP)(with_options(**groups)(sweep))
