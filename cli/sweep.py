"""`sculpt sweep`: which strength, by what the fused models score."""

from __future__ import annotations

import functools
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..fusion.arithmetic.two_sided import Protection
from ..fusion.methods import TwoSided
from ..fusion.plan.options import Policies, Selection
from ..fusion.run.calibration import SHIPPED, Calibration
from ..fusion.run.settings import Settings
from .evaluate import ScoringOptions, SuiteFile
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
    from ..evaluate.live_fuse import LiveFuse
    from ..evaluate.points import Point, Sweep
    from ..evaluate.suite import Suite
    from ..evaluate.sweep import Grid
    from ..fusion.checkpoint.output.processes import Processes
    from ..fusion.checkpoint.output.steps import Steps
    from ..fusion.run.fuse import Prepared

HELP = """Score fused models of many strengths, and sparsities, without writing one; then choose and write the best.

Calibration and reductions are done once; a point costs a pass over the weights in memory and an evaluation. What is
scored has the bits that `sculpt fuse` would write. Any method's strength can be swept, several side by side.

**Examples**

    sculpt sweep base/ sft/ --suite suite.yaml --gamma 0.3:1.0:0.1

    sculpt sweep base/ sft/ --suite suite.yaml --sparsity 0.8,0.9,0.95 --method adadare --method dare --seeds 3

    sculpt sweep base/ sft/ --suite suite.yaml --sparsity 0.5,0.8,0.9 --method tailor --data train.jsonl

    sculpt sweep base/ sft/ --suite suite.yaml --gamma auto --pick h-score -o sweep/

    sculpt sweep base/ sft/ --suite suite.yaml --pick 'target>=0.97*tuned' --per-block -o sweep/

    sculpt sweep base/ sft/ --suite suite.yaml --data train.jsonl --protect default --pick h-score
"""
DEFAULT_GRID = "0.3:1.0:0.1"
DEFAULT_PICK = ("h-score", "target", "pretrained")


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """What is tried.

    Attributes:
        sparsity: Drop rates, such as 0.8,0.9,0.95, for methods that drop. Default: the method's own.
        seeds: How often what is random is drawn and scored, with seeds from --seed on; charts and picks are of means.
        per_block: Try a γ for each block beside one for all, at the same expected distance to the base (AdaDARE-γ).
        pick: Choose and write a model, by h-score, avg or a task; or target>=0.97*tuned, the best `pretrained` within.
    """

    gamma: Annotated[
        str,
        typer.Option(
            "--gamma",
            help="Strengths: start:stop:step, a list, or `auto` for a search by golden section.",
            rich_help_panel="What is tried",
        ),
    ] = DEFAULT_GRID
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
            help="Weights λ that are swept with --protect: a list, or `auto`. γ is then the one of --gamma, or 1.",
            rich_help_panel="Protection",
        ),
    ] = "0.1,0.3,1,3,10"


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
        bool | None, typer.Option("--charts/--no-charts", help="Draw curves in letters. Default: on a terminal.")
    ] = None,
    dry_run: DryRun = False,
    json: AsJson = False,
    *,
    grid: GridOptions,
    calibration: Calibration,
    protection: Protection,
    scoring: ScoringOptions,
    selection: Selection,
    policies: Policies,
    settings: Settings,
) -> None:
    """Run a sweep, show it, and write what was asked for."""
    run_sweep_command(
        base,
        tuned,
        suite,
        output=output,
        overwrite=overwrite,
        charts=charts,
        json=json,
        grid=grid,
        calibration=calibration,
        protection=protection,
        scoring=scoring,
        settings=replace(settings, selection=selection, policies=policies),
        given=given_flags(ctx),
        dry_run=dry_run,
    )


def run_sweep_command(
    base: Path,
    tuned: Path,
    suite: Path,
    *,
    output: Path | None,
    overwrite: bool,
    json: bool,
    grid: GridOptions,
    calibration: Calibration,
    protection: Protection,
    scoring: ScoringOptions,
    settings: Settings,
    given: Collection[str],
    charts: bool | None = None,
    model: Path | None = None,
    steps: Steps | None = None,
    dry_run: bool = False,
) -> Path | None:
    """Run a sweep, show it, and write what was asked for; return where the tables are, if they are anywhere.

    Args:
        model: Where the chosen model goes, before the tables get their name. Default: `fused` in their folder.
        steps: Of a run that makes further outputs.
    """
    from .console import print_json, quiet_libraries, say
    from .progress import progress_bar

    refuse_missing([base, tuned], [suite, *calibration.files()])
    quiet_libraries()
    from ..api import prepare_fuse
    from ..evaluate.choice import Pick
    from ..evaluate.live_fuse import LiveFuse, held_curvature
    from ..evaluate.resume import Held, KnownPoints, files_of
    from ..evaluate.strengths import Family, parse_grid
    from ..evaluate.suite import read_suite
    from ..evaluate.sweep import Grid, run_sweep
    from ..fusion.checkpoint import find_model
    from ..fusion.checkpoint.identity import digest_of_data
    from ..fusion.checkpoint.output.guard import CHECKPOINT, SWEEP, refuse_output
    from ..fusion.checkpoint.output.workspace import payload_of, repair
    from ..fusion.errors import MethodError
    from ..fusion.run.fuse import resume_facts
    from ..measuring import statistics, with_found

    read = read_suite(suite)
    known = read.measures()
    pick = Pick.parse(grid.pick or next(name for name in DEFAULT_PICK if name in known), known)
    if TwoSided.name in (grid.method or ()) and calibration.protect is None:
        calibration = replace(calibration, protect=SHIPPED)
    wanted = _protected(
        Grid(
            families=tuple(Family.parse(text) for text in grid.method or [_default(calibration, given)]),
            strengths=None if grid.gamma == "auto" else parse_grid(grid.gamma),
            sparsities=parse_grid(grid.sparsity) if grid.sparsity else (),
            per_block=grid.per_block,
            seeds=tuple(range(settings.seed, settings.seed + max(1, grid.seeds))),
        ),
        grid.protect_weight,
        protection_of(protection, calibration, set(given) - {"protect_weight"} if calibration.protect else given),
        given,
    )
    folder = output or (find_model(tuned).beside("-sweep") if grid.pick else None)
    given_files = [suite, *files_of(read), *calibration.files()]
    if folder is not None:
        goes_on = steps is not None and steps.has_appeared(folder)
        refuse_output(folder, [base, tuned, *given_files], SWEEP, overwrite=overwrite or dry_run or goes_on)
    methods = [family.at(0.5) for family in wanted.families]
    called = f"{find_model(tuned).beside('').name}-{wanted.families[0].method.name}"
    prepared = prepare_fuse(
        base,
        tuned,
        output=model or (None if folder is None else folder / "fused"),
        method=max(methods, key=lambda method: (method.uses_curvature, method.needs_gram)),
        settings=replace(settings, device=scoring.device, protection=wanted.protection),
        overwrite=overwrite or dry_run or grid.pick is None or (steps is not None and steps.has_appeared(model)),
    )
    if not (prepared.method.uses_curvature or wanted.protection is not None):
        refuse_idle(calibration, prepared.method, given)
    calibration, notes = with_found(prepared, calibration)
    for note in notes:
        say(note)
    if dry_run:
        _show_plan(prepared, calibration, read, wanted, json=json)
        return folder
    with ExitStack() as stack:
        processes = prepared.processes
        if folder is None and processes.are_several:
            raise MethodError(
                f"{processes.count} processes share a sweep where it has an output", hint="`--output` names one"
            )
        workspace = None if folder is None else stack.enter_context(processes.meet(folder, made_by="sweep"))
        calibration = replace(calibration, seed=settings.seed, device=scoring.device)

        def measure() -> tuple[Held, dict[str, Any] | None]:
            with (
                progress_bar("calibrating", unit="steps") as report,
                statistics(prepared, calibration, progress=report) as found,
            ):
                return held_curvature(found), found.provenance

        done, asked = None, {}
        if workspace is not None:
            facts = {
                "fuse": resume_facts(prepared, None),
                "calibration": repr(calibration),
                "beside": [model.companions_key() for model in (prepared.plan.base, *prepared.plan.tuned)],
                "suite": read.content.model_dump(mode="json"),
                "data": {str(file): digest_of_data(file) for file in given_files if file.exists()},
                "scoring": repr(scoring),
            }
            asked = {**facts, "grid": repr(wanted), "pick": grid.pick}
            if steps is not None and folder is not None and steps.is_made(folder, asked, SWEEP, overwrite=overwrite):
                if steps.has_appeared(model):
                    return folder
                refuse_output(folder, (), SWEEP, overwrite=overwrite)  # nothing was chosen
            done = stack.enter_context(KnownPoints(processes, workspace, facts))
        held, provenance = measure() if done is None else done.curvature(measure)
        live = LiveFuse(prepared, held, device=scoring.device, dtype=scoring.dtype)
        with progress_bar("sweeping", unit="points") as report:
            swept = run_sweep(live, read, wanted, pick, batch_size=scoring.batch_size, scored=done, progress=report)
        content = {"suite": read.name, "seed": settings.seed, "points": [point.as_json() for point in swept.points]}
        if not json:
            show(swept, read, charts=charts)
        best, failure = None, None
        if grid.pick:
            try:
                best = swept.best(pick)
            except MethodError as error:  # the scores are worth having without a model
                failure = error
        if best is not None:
            content["picked"] = best.as_json()
        if folder is not None and workspace is not None:
            payload = payload_of(workspace, folder)
            payload.mkdir(exist_ok=True)
            write = functools.partial(
                _write_model, live, swept, provenance=provenance, calibration=calibration, within=processes
            )
            if best is not None and model is not None:
                if steps is None or not steps.is_made(model, asked, CHECKPOINT, overwrite=overwrite):
                    write(best, output=model, called=model.name, overwrite=overwrite)
            elif best is not None:
                write(best, output=payload / "fused", called=called, overwrite=True)

            def fill(made: Path) -> None:
                _write_results(made, swept, content)
                repair(made / "fused")  # what could not be removed beside the model would go with it

            processes.publish(fill, SWEEP.may_replace if overwrite else None)
            say(f"wrote table and figures to {folder}")
    if failure is not None:
        raise failure
    if best is not None:
        sign = {"lambda": "λ", "gamma": "γ"}.get(best.strength_is, best.strength_is or "strength")
        say(f"{grid.pick}: {best.label} at {sign} = {best.strength:.4g}, written to {prepared.output}")
    if json:
        print_json(content)
    return folder


def _show_plan(prepared: Prepared, calibration: Calibration, suite: Suite, grid: Grid, *, json: bool) -> None:
    """Print what a point takes, and how many there are, once the suite's rows can be read."""
    from ..data.rows import open_rows
    from ..evaluate.resume import files_of
    from ..evaluate.sweep import num_points
    from . import fuse_view
    from .console import out, print_json

    tasks = {file.name: len(open_rows(file)) for file in files_of(suite)}
    points = num_points(grid)
    if json:
        print_json({**fuse_view.plan_json(prepared, calibration), "points": points, "rows": tasks})
        return
    fuse_view.show_plan(prepared, calibration)
    out(f"suite {suite.name}: {', '.join(f'{rows} rows of {name}' for name, rows in tasks.items())}")
    out(f"points {points or 'as many as the search takes'}, each scored on the suite")


def _default(calibration: Calibration, given: Collection[str]) -> str:
    """Return the method that is swept where none is named: that of `fuse` with the same flags."""
    alone = calibration.protect is not None and not {"gamma", "sparsity"} & set(given)
    return TwoSided.name if alone else "adadare"


def _protected(grid: Grid, weights: str, protection: Protection | None, given: Collection[str]) -> Grid:
    """Return the grid with weights of the protection in place of strengths, if the base is to be protected."""
    from ..api import ADADARE_PROTECTED
    from ..evaluate.strengths import parse_grid
    from ..fusion.errors import MethodError
    from ..fusion.methods import AdaDare

    if protection is None:
        return grid
    if grid.per_block:
        raise MethodError("`--per-block` and `--protect` exclude each other")
    if "gamma" in given and (grid.strengths is None or len(grid.strengths) != 1):
        raise MethodError("with `--protect` its weight is swept, at one `--gamma`")
    strengths = None if weights == "auto" else parse_grid(weights)
    # As `fuse` does: AdaDARE-γ drops nothing by itself where the base is protected.
    families = tuple(
        replace(family, method=replace(family.method, sparsity=ADADARE_PROTECTED["sparsity"]))
        if isinstance(family.method, AdaDare) and "sparsity=" not in family.text
        else family
        for family in grid.families
    )
    gamma = grid.strengths[0] if "gamma" in given and grid.strengths else 1.0
    return replace(grid, families=families, strengths=strengths, protection=protection, gamma=gamma)


def _write_results(folder: Path, swept: Sweep, content: dict[str, object]) -> None:
    """Write table and figures, and charts where matplotlib is installed."""
    import json

    from ..evaluate.charts import draw
    from ..fusion.checkpoint.output.guard import SWEEP_RECORD
    from ..fusion.errors import ModelError
    from .console import say

    (folder / "sweep.csv").write_text(swept.as_csv(), encoding="utf-8")
    try:
        draw(swept, [folder / "sweep.png", folder / "sweep.svg"])
    except ModelError as error:
        say(f"note: {error.message}; {error.hint}")
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / SWEEP_RECORD).write_text(text + "\n", encoding="utf-8")


def _write_model(
    live: LiveFuse,
    swept: Sweep,
    best: Point,
    *,
    provenance: dict[str, Any] | None,
    calibration: Calibration,
    output: Path,
    called: str,
    overwrite: bool,
    within: Processes,
) -> None:
    from ..fusion.checkpoint.output.processes import Processes
    from ..measuring import comparison
    from .fuse_view import show_moved
    from .progress import progress_bar

    scored = {point.family: point.scores.measures for point in swept.points if point.is_reference}
    with progress_bar("fusing") as report:
        compare, plan = None, live.prepared.plan
        if best.protection is not None and calibration.protect_check and provenance is not None:
            general: Any = provenance.get("general") or []
            sides = general if isinstance(general, list) else [general]
            compare = comparison(plan.base, plan.tuned, calibration, sides, report)
        manifest = live.write(
            best.method,
            best.blocks,
            best.protection,
            provenance=provenance,
            scores={**scored, called: best.scores.measures},
            command=command_line(),
            output=output,
            called=called,
            overwrite=overwrite,
            processes=Processes(within=within),
            compare=compare,
            progress=report,
        )
    if manifest.moved is not None:
        show_moved(manifest.moved, aside=True)


def show(swept: Sweep, suite: Suite, *, charts: bool | None = None) -> None:
    """Print every point, and on a terminal, or where they are asked for, the curves."""
    from ..evaluate.charts import TITLES, by_strength, pairs_of, shown_measures, terminal_chart
    from ..evaluate.points import Spot
    from ..evaluate.tables import with_deviation
    from .console import out, show_chart, table

    measures = [name for name in ("target", "pretrained", "avg", "h-score") if name in swept.points[0].scores.measures]
    references = [Spot(points=(point,)) for point in swept.points if point.is_reference]  # of one seed alone
    rows = [
        [*_point(spot.first), *(with_deviation(spot.measures[name], spot.deviation(name)) for name in measures)]
        for spot in (*references, *swept.spots)
    ]
    table(f"sweep: {suite.name}", ["model", "strength", "dropped", "L1 distance", *measures], rows)
    for measure in shown_measures(swept):
        chart = terminal_chart(pairs_of(by_strength(swept, measure)), x="strength")
        show_chart(f"{TITLES[measure]} against strength", chart, asked=charts)
    fuse = sum(point.fuse_seconds for point in swept.tried) / len(swept.tried)
    score = sum(point.score_seconds for point in swept.tried) / len(swept.tried)
    out(f"a point took {fuse:.2f} s to set the weights and {score:.2f} s to score them")


def _point(point: Point) -> list[str]:
    if point.is_reference:
        return [point.family, "–", "–", f"{point.distance.l1:.4g}"]
    return [point.label, f"{point.strength:.3f}", f"{point.distance.sparsity:.2%}", f"{point.distance.l1:.4g}"]


def register(app: typer.Typer) -> None:
    """Add `sweep`."""
    groups = {
        "grid": FlagGroup(of=GridOptions, panel="What is tried"),
        "calibration": replace(CALIBRATION, flags={**CALIBRATION.flags, "batch_size": "calibration_batch_size"}),
        "protection": HELD,
        "scoring": FlagGroup(of=ScoringOptions, panel="Scoring"),
        "selection": SELECTION,
        "policies": POLICIES,
        "settings": SETTINGS.only("seed", "threads"),
    }
    app.command("sweep", help=HELP)(with_options(**groups)(sweep))
