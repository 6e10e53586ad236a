"""`sweep`: which strength is best, by what the fused models score; and that model, written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..api import ADADARE_PROTECTED, prepare_fuse
from ..fusion.arithmetic.two_sided import Protection
from ..fusion.checkpoint import find_model
from ..fusion.checkpoint.given import Given as Model
from ..fusion.checkpoint.given import takes_models
from ..fusion.checkpoint.identity import digest_of_data
from ..fusion.checkpoint.output.guard import CHECKPOINT, SWEEP, SWEEP_RECORD, refuse_output
from ..fusion.checkpoint.output.processes import Processes
from ..fusion.checkpoint.output.steps import Steps
from ..fusion.checkpoint.output.workspace import payload_of, repair
from ..fusion.errors import MethodError, ModelError
from ..fusion.methods import AdaDare, TwoSided
from ..fusion.progress import Bars, bars
from ..fusion.record.manifest import sides_of
from ..fusion.run.calibration import Calibration
from ..fusion.run.prepared import Prepared, resume_facts
from ..fusion.run.settings import Settings
from ..measuring import comparison, statistics, with_found
from .charts import draw
from .choice import Pick
from .live_fuse import LiveFuse, held_curvature
from .options import STRENGTHS, WEIGHTS, Scoring
from .points import Sweep
from .resume import Held, KnownPoints, files_of
from .strengths import Family, parse_grid
from .suite import Suite, read_suite
from .sweep import Grid, run_sweep

logger = logging.getLogger(__name__)

PICKS = ("h-score", "target", "pretrained")  # what is best where nobody says: the first that the suite measures
AUTO = "auto"
Numbers = str | Sequence[float]  # a grid as it is typed, or its numbers


@takes_models("base", "tuned")
def sweep(
    base: Model,
    tuned: Model,
    suite: Path | str | Suite,
    *,
    methods: Sequence[str] = (),
    strengths: Numbers | None = None,
    sparsities: Numbers = (),
    weights: Numbers = WEIGHTS,
    per_block: bool = False,
    seeds: int = 1,
    pick: str | None = None,
    output: Path | str | None = None,
    model: Path | str | None = None,
    calibration: Calibration | None = None,
    protection: Protection | None = None,
    scoring: Scoring | None = None,
    settings: Settings | None = None,
    overwrite: bool = False,
    steps: Steps | None = None,
    command: str | None = None,
    shown: Callable[[Sweep], None] = lambda _: None,
    bars: Bars = bars,
) -> Sweep:
    """Score fused models of many strengths, and sparsities, without writing one; then choose and write the best.

    Args:
        base, tuned: As `fuse` takes them.
        methods: Names with options, as `adadare:allocation=exact`. Default: as `fuse` does.
        strengths: γ or scale: numbers, a grid such as `0.3:1.0:0.1`, or `auto` for a search by golden section. Where
            the base is protected one number, which is 1 by default, as then λ is swept.
        sparsities: Fractions dropped, in [0, 1), for methods that drop.
        weights: λ of the protection, as `strengths`.
        per_block: Try a γ for each block beside one for all (AdaDARE-γ).
        seeds: How often what is random is drawn and scored, from the settings' seed on.
        pick: Choose and write a model: by `h-score`, `avg`, a task, or `target>=0.97*tuned`.
        output: Folder of CSV, JSON and charts, and of the model in `fused`. Default: none, or with `pick`
            `<tuned>-sweep`, beside the fine-tune.
        model: Where the chosen model goes, in place of that.
        steps: Of a run that makes further outputs.
        command: For the manifest of the model.
        shown: Is given the scores before a model is chosen and written.
        bars: Opens a bar for each of measuring, scoring and writing.

    Raises:
        MethodError: No point keeps the limit of `pick`; table and charts are written all the same.
        SculptError: Whatever else is wrong, in one sentence.
    """
    settings, scoring = settings or Settings(), scoring or Scoring()
    plan = prepare_sweep(
        base,
        tuned,
        suite,
        methods=methods,
        strengths=strengths,
        sparsities=sparsities,
        weights=weights,
        per_block=per_block,
        seeds=seeds,
        pick=pick,
        output=output,
        model=model,
        calibration=calibration or Calibration(),
        protection=protection,
        scoring=scoring,
        settings=settings,
        may_exist=lambda place: overwrite or (steps is not None and steps.has_appeared(place)),
    )
    read, folder, files, calibration = plan.suite, plan.folder, plan.files, plan.calibration
    place = None if model is None else Path(model)
    with ExitStack() as stack:
        processes = plan.prepared.processes
        if folder is None and processes.are_several:
            raise MethodError(f"{processes.count} processes can share a sweep only with an output", options=["output"])
        workspace = None if folder is None else stack.enter_context(processes.meet(folder, made_by="sweep"))
        done, asked = None, {}
        if workspace is not None and folder is not None:
            facts = _facts(plan.prepared, calibration, read, files, scoring)
            asked = {**facts, "grid": repr(plan.grid), "pick": pick}
            if steps is not None and steps.is_made(folder, asked, SWEEP, overwrite=overwrite):
                if steps.has_appeared(place):
                    return Sweep(points=(), suite=read.name, seed=settings.seed, output=folder, model=place)
                refuse_output(folder, (), SWEEP, overwrite=overwrite)  # nothing was chosen
            done = stack.enter_context(KnownPoints(processes, workspace, facts))

        def measure() -> tuple[Held, dict[str, Any] | None]:
            with (
                bars("calibrating", unit="steps") as report,
                statistics(plan.prepared, calibration, progress=report) as measured,
            ):
                return held_curvature(measured), measured.provenance

        held, provenance = measure() if done is None else done.curvature(measure)
        live = LiveFuse(plan.prepared, held, device=scoring.device, dtype=scoring.dtype)
        with bars("sweeping", unit="points") as report:
            points = run_sweep(
                live, read, plan.grid, plan.pick, batch_size=scoring.batch_size, scored=done, progress=report
            ).points
        found = Sweep(points=points, suite=read.name, seed=settings.seed, output=folder)
        shown(found)
        failure: MethodError | None = None
        if pick:
            try:
                found = replace(found, picked=found.best(plan.pick), model=plan.model)
            except MethodError as error:  # the scores are worth having without a model
                failure = error

        def write(output: Path, called: str, *, overwrite: bool) -> None:
            assert found.picked is not None
            best = found.picked
            with bars("fusing") as report:
                compare, planned = None, plan.prepared.plan
                if best.protection is not None and calibration.protect_check and provenance is not None:
                    sides = sides_of(provenance, "general")
                    compare = comparison(planned.base, planned.tuned, calibration, sides, report)
                live.write(
                    best.method,
                    best.blocks,
                    best.protection,
                    provenance=provenance,
                    scores={**found.references, called: best.scores.measures},
                    command=command,
                    output=output,
                    called=called,
                    overwrite=overwrite,
                    processes=Processes(within=processes),
                    compare=compare,
                    progress=report,
                )

        if folder is not None and workspace is not None:
            payload = payload_of(workspace, folder)
            payload.mkdir(exist_ok=True)
            if found.picked is not None and place is not None:
                if steps is None or not steps.is_made(place, asked, CHECKPOINT, overwrite=overwrite):
                    write(place, place.name, overwrite=overwrite)
            elif found.picked is not None:
                name = f"{find_model(tuned).beside('').name}-{plan.grid.families[0].method.name}"
                write(payload / "fused", name, overwrite=True)

            def fill(made: Path) -> None:
                _write_results(made, found)
                repair(made / "fused")  # what could not be removed beside the model would go with it

            processes.publish(fill, SWEEP.may_replace if overwrite else None)
    if failure is not None:
        raise failure
    return found


@dataclass(frozen=True, kw_only=True)
class PreparedSweep:
    """A sweep that is planned and checked, with nothing run yet.

    Attributes:
        files: That are read: of the suite, of its tasks, of the calibration.
        folder, model: Where tables and the chosen model go, or None.
    """

    prepared: Prepared
    calibration: Calibration
    suite: Suite
    grid: Grid
    pick: Pick
    files: Sequence[Path]
    folder: Path | None
    model: Path | None


def prepare_sweep(
    base: Path | str,
    tuned: Path | str,
    suite: Path | str | Suite,
    *,
    methods: Sequence[str],
    strengths: Numbers | None,
    sparsities: Numbers,
    weights: Numbers,
    per_block: bool,
    seeds: int,
    pick: str | None,
    output: Path | str | None,
    model: Path | str | None,
    calibration: Calibration,
    protection: Protection | None,
    scoring: Scoring,
    settings: Settings,
    may_exist: Callable[[Path | None], bool],
) -> PreparedSweep:
    """Return what `sweep` would do.

    Args:
        may_exist: Whether an output that is there is no reason to refuse.

    Raises:
        SculptError: Whatever could be found out before the long part starts.
    """
    read = suite if isinstance(suite, Suite) else read_suite(Path(suite))
    known = read.measures()
    chosen = Pick.parse(pick or next(name for name in PICKS if name in known), known)
    wanted = _grid(methods, strengths, sparsities, weights, calibration, protection)
    wanted = replace(wanted, per_block=per_block, seeds=tuple(range(settings.seed, settings.seed + max(1, seeds))))
    if wanted.protection is not None:
        if per_block:
            raise MethodError("a γ for each block and a protection exclude each other", options=["per_block"])
        calibration = calibration.protecting()
    folder = Path(output) if output is not None else find_model(tuned).beside("-sweep") if pick else None
    made = Path(model) if model is not None else None if folder is None else folder / "fused"
    files = [read.file, *files_of(read), *calibration.files()]
    if folder is not None:
        refuse_output(folder, [base, tuned, *files], SWEEP, overwrite=may_exist(folder))
    prepared = prepare_fuse(
        base,
        tuned,
        output=made,
        method=max(
            (family.at(0.5) for family in wanted.families),
            key=lambda method: (method.uses_curvature, method.needs_gram),
        ),
        settings=replace(settings, device=scoring.device, protection=wanted.protection),
        overwrite=not pick or may_exist(made),
    )
    calibration, notes = with_found(prepared, calibration)
    for note in (*prepared.plan.warnings, *notes):
        logger.warning("%s", note)
    return PreparedSweep(
        prepared=prepared,
        calibration=replace(calibration, seed=settings.seed, device=scoring.device),
        suite=read,
        grid=wanted,
        pick=chosen,
        files=files,
        folder=folder,
        model=made,
    )


def _grid(
    methods: Sequence[str],
    strengths: Numbers | None,
    sparsities: Numbers,
    weights: Numbers,
    calibration: Calibration,
    protection: Protection | None,
) -> Grid:
    """Return what is tried: strengths, or where the base is protected the weights of that."""
    protects = calibration.protect is not None or protection is not None
    alone = protects and strengths is None and not sparsities
    families = tuple(map(Family.parse, methods or [TwoSided.name if alone else AdaDare.name]))
    if not protects and not any(family.method.protects for family in families):
        tried = _numbers(STRENGTHS if strengths is None else strengths)
        return Grid(families=families, strengths=tried, sparsities=_numbers(sparsities) or ())
    gamma = (1.0,) if strengths is None else _numbers(strengths)
    if gamma is None or len(gamma) != 1:
        raise MethodError("if the base is protected, its weight is swept, and γ is one number", options=["gamma"])
    # As `fuse` does: AdaDARE-γ drops nothing by itself where the base is protected.
    families = tuple(
        replace(family, method=replace(family.method, sparsity=ADADARE_PROTECTED["sparsity"]))
        if isinstance(family.method, AdaDare) and "sparsity=" not in family.text
        else family
        for family in families
    )
    return Grid(
        families=families,
        strengths=_numbers(weights),
        sparsities=_numbers(sparsities) or (),
        protection=protection or Protection(),
        gamma=gamma[0],
    )


def _numbers(grid: Numbers) -> tuple[float, ...] | None:
    """Return the numbers of a grid; None where they are to be sought."""
    if isinstance(grid, str):
        return None if grid == AUTO else parse_grid(grid)
    return tuple(grid)


def _facts(
    prepared: Prepared, calibration: Calibration, suite: Suite, files: Sequence[Path], scoring: Scoring
) -> Mapping[str, Any]:
    """Return all that decides what is measured, and what a point scores."""
    return {
        "fuse": resume_facts(prepared, None),
        "calibration": repr(calibration),
        "beside": [model.companions_key() for model in (prepared.plan.base, *prepared.plan.tuned)],
        "suite": suite.content.model_dump(mode="json"),
        "data": {str(file): digest_of_data(file) for file in files if file.exists()},
        "scoring": repr(scoring),
    }


def _write_results(folder: Path, swept: Sweep) -> None:
    """Write table and figures, and charts where matplotlib is installed."""
    (folder / "sweep.csv").write_text(swept.as_csv(), encoding="utf-8")
    try:
        draw(swept, [folder / "sweep.png", folder / "sweep.svg"])
    except ModelError as error:
        logger.warning("note: %s; %s", error.message, error.hint)
    text = json.dumps(swept.as_json(), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / SWEEP_RECORD).write_text(text + "\n", encoding="utf-8")
