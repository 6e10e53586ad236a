"""`repair`: what we recommend, in one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..api import fuse
from ..fusion.arithmetic.two_sided import Protection
from ..fusion.checkpoint import find_model
from ..fusion.checkpoint.given import Given as Model
from ..fusion.checkpoint.given import takes_models
from ..fusion.checkpoint.output.guard import SWEEP_RECORD, refuse_inputs, refuse_output
from ..fusion.checkpoint.output.steps import Steps
from ..fusion.checkpoint.output.workspace import identity_of
from ..fusion.errors import MethodError
from ..fusion.launch import launched
from ..fusion.methods import TwoSided
from ..fusion.progress import Bars, bars
from ..fusion.record.manifest import Manifest
from ..fusion.run.calibration import Calibration
from ..fusion.run.settings import Settings
from .options import Scoring
from .points import Sweep
from .report import PAGE, report
from .suite import Suite

WITH_DATA, WITHOUT = "0.3,1,3", "0.03,0.1,0.3"  # around the λ that serves best with samples of the task, and without


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """A repaired model.

    Attributes:
        model: Where it is; `sculpt.load(repaired)` loads it.
        page: A page about it.
        sweep: What each λ that was tried scores, where a suite was given.
    """

    model: Path
    page: Path
    sweep: Sweep | None = None

    def __fspath__(self) -> str:
        return str(self.model)

    def __repr__(self) -> str:
        chosen = "" if self.sweep is None or self.sweep.picked is None else f", {self.sweep.picked.told_strength}"
        return f"Repaired({self.model}{chosen}; {self.page} is about it)"

    def _repr_html_(self) -> str:
        return (Manifest.read(self.model) if self.sweep is None else self.sweep)._repr_html_()


@takes_models("base", "tuned")
def repair(
    base: Model,
    tuned: Model,
    *,
    output: Path | str | None = None,
    suite: Path | str | Suite | None = None,
    pick: str | None = None,
    weights: str | None = None,
    calibration: Calibration | None = None,
    protection: Protection | None = None,
    scoring: Scoring | None = None,
    settings: Settings | None = None,
    overwrite: bool = False,
    steps: Steps | None = None,
    dry_run: bool = False,
    bars: Bars = bars,
    fuse: Callable[..., object] = fuse,
    sweep: Callable[..., Sweep | None] | None = None,
) -> Repaired:
    """Give a fine-tune back what it forgot, and keep what it learned, by two-sided curvature; write a page about it.

        sculpt.repair("base/", "sft/", calibration=sculpt.Calibration(data="train.jsonl"))

    Args:
        base, tuned: As `fuse` takes them.
        output: Default: `<tuned>-repaired`, beside the fine-tune.
        suite: Tasks by which λ is chosen. Default: λ is as it serves most.
        pick: The best `h-score`, `avg` or task; or `target>=0.97*tuned`, the best `pretrained` within that.
        weights: λ, or with a suite those that are tried, as `0.3,1,3`.
        calibration: `data`, samples of the task; without any the fine-tuning deltas stand in for them.
        steps: Which of these outputs a run that was killed has made.
        dry_run: Write nothing; for a `fuse` and `sweep` that take it too, and show what they would do.
        bars: Opens a bar for each of measuring, scoring and writing.
        fuse, sweep: What does the work, in place of the functions of these names.

    Raises:
        SculptError: One sentence about what is wrong.
    """
    calibration = (calibration or Calibration()).protecting()
    scoring, settings = scoring or Scoring(), settings or Settings()
    made, page = places_of(tuned, output)
    inputs = [base, tuned, *calibration.files(), *([Path(suite)] if isinstance(suite, (str, Path)) else [])]
    for place in (made, page):
        refuse_inputs(place, inputs)
    told: dict[str, Any] = {} if steps is None and not dry_run else {"steps": steps, "dry_run": dry_run}
    may_exist = overwrite or dry_run or (steps is not None and steps.has_appeared(page))
    refuse_output(page, inputs, PAGE, overwrite=may_exist)
    swept = None
    if suite is None:
        refuse_without_suite(pick, weights)
        if weights is not None:
            protection = replace(protection or Protection(), weight=_number(weights))
        settings = replace(settings, device=scoring.device)
        with bars("calibrating and fusing", unit="steps") as progress:
            fuse(
                base,
                tuned,
                output=made,
                method=TwoSided(),
                calibration=replace(calibration, seed=settings.seed, device=settings.device),
                protection=protection,
                settings=settings,
                overwrite=overwrite,
                progress=progress,
                **told,
            )
    else:
        if sweep is None:
            from .sweeping import sweep
        swept = sweep(
            base,
            tuned,
            suite,
            methods=[TwoSided.name],
            weights=weights or (WITH_DATA if calibration.has_samples else WITHOUT),
            pick=pick or "h-score",
            output=made.with_name(f"{made.name}-sweep"),
            model=made,
            calibration=calibration,
            protection=protection,
            scoring=scoring,
            settings=settings,
            overwrite=overwrite,
            bars=bars,
            **told,
        )
    if dry_run or not launched().is_first:  # of several processes one writes the page
        return Repaired(model=made, page=page, sweep=swept)
    if steps is None or not steps.is_made(page, {"of": identity_of(made)}, PAGE, overwrite=overwrite):
        scores = [] if swept is None or swept.output is None else [swept.output / SWEEP_RECORD]
        report(made, output=page, scores=scores, overwrite=overwrite)
    return Repaired(model=made, page=page, sweep=swept)


def refuse_without_suite(pick: str | None, weights: str | None) -> None:
    """Refuse what a suite is needed for, where there is none.

    Raises:
        MethodError: Something is to be picked by its scores, or there is more than one λ.
    """
    if pick is not None:
        raise MethodError("`pick` has no effect without `suite`, whose scores it uses", options=["pick", "suite"])
    if "," in (weights or ""):
        raise MethodError(
            "several λ are tried on a suite, and there is none",
            hint="`suite` names one; `sculpt suite init` writes one",
            options=["suite"],
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise MethodError(f"`weight` must be a number, got `{text}`", options=["Protection.weight"]) from error


def places_of(tuned: Path | str, output: Path | str | None) -> tuple[Path, Path]:
    """Return where the repaired model goes, and the page about it."""
    made = Path(output) if output is not None else find_model(tuned).beside("-repaired")
    return made, made.with_name(f"{made.name}-report.html")
