"""`benchmark`: methods compared on a suite as the papers' tables do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..api import prepare_fuse
from ..fusion.arithmetic.two_sided import Protection
from ..fusion.checkpoint.given import Given as Model
from ..fusion.checkpoint.given import takes_models
from ..fusion.methods import AdaDare, TwoSided
from ..fusion.progress import Bars, bars
from ..fusion.run.calibration import Calibration
from ..fusion.run.settings import Settings
from ..fusion.table import Table
from ..measuring import statistics, with_found
from .choice import Pick
from .comparison import PAPERS, Best, Contender, Entry, compare, table_of
from .live_fuse import LiveFuse, held_curvature
from .options import CHOICES, WEIGHTS, Scoring
from .strengths import parse_grid
from .suite import Suite, read_suite

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What methods score.

    Attributes:
        suite: Its name.
        entries: The base, the fine-tune, and each method.
        chosen_on_itself: Whether strengths were chosen on what is reported, which flatters whatever has one.
    """

    suite: str
    entries: tuple[Entry, ...]
    chosen_on_itself: bool = False

    def __repr__(self) -> str:
        return f"Benchmark({', '.join(entry.name for entry in self.entries)} on {self.suite})"

    def _repr_html_(self) -> str:
        return self.table().html()

    def table(self) -> Table:
        """Return a row a method: all tasks, Avg and H-score, mean ± deviation over the seeds."""
        return replace(table_of(self.entries), title=self.suite)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"suite": self.suite, "rows": [entry.as_json() for entry in self.entries]}


@takes_models("base", "tuned")
def benchmark(
    base: Model,
    tuned: Model,
    suite: Path | str | Suite,
    *,
    methods: Sequence[str] = (),
    seeds: int = 1,
    choose_on: Path | str | Suite | None = None,
    strengths: str = CHOICES,
    weights: str = WEIGHTS,
    pick: str = "h-score",
    calibration: Calibration | None = None,
    protection: Protection | None = None,
    scoring: Scoring | None = None,
    settings: Settings | None = None,
    bars: Bars = bars,
) -> Benchmark:
    """Return what the base, the fine-tune and methods score on a suite; nothing is written.

    Args:
        base, tuned: As `fuse` takes them.
        methods: Names with options, as `dare:sparsity=0.8`. Default: those of the AdaDARE-γ paper's tables, and where
            the base is protected two-sided curvature.
        seeds: How often what is random is drawn and scored, from the settings' seed on.
        choose_on: A suite of other samples on which each method's strength is chosen. Default: none is chosen.
        strengths, weights: γ or scale, and λ of a protection, that are tried for that: grids, as for `sweep`.
        pick: What is best there: `h-score`, `avg`, a task, or `target>=0.97*tuned`.
        bars: Opens a bar for measuring, and one for scoring.

    Raises:
        SculptError: One sentence about what is wrong.
    """
    settings, scoring, calibration = settings or Settings(), scoring or Scoring(), calibration or Calibration()
    if calibration.protect is not None:
        protection = protection or Protection()
    read = suite if isinstance(suite, Suite) else read_suite(Path(suite))
    texts = methods or [*PAPERS, *([TwoSided.name] if protection else [])]
    contenders = [Contender.parse(text, protection) for text in texts]
    best = None
    if choose_on is not None:
        chosen = choose_on if isinstance(choose_on, Suite) else read_suite(Path(choose_on))
        best = Best(
            suite=chosen,
            pick=Pick.parse(pick, chosen.measures()),
            strengths=parse_grid(strengths),
            weights=parse_grid(weights),
        )
    tried = [contender.method for contender in contenders] or [AdaDare()]
    prepared = prepare_fuse(
        base,
        tuned,
        method=max(tried, key=lambda method: (method.uses_curvature, method.needs_gram)),
        settings=replace(settings, device=scoring.device, protection=protection),
        overwrite=True,  # nothing is written
    )
    calibration, notes = with_found(prepared, calibration)
    for note in (*prepared.plan.warnings, *notes):
        logger.warning("%s", note)
    calibration = replace(calibration, seed=settings.seed, device=scoring.device)
    with (
        bars("calibrating", unit="steps") as report,
        statistics(prepared, calibration, progress=report) as measured,
    ):
        held = held_curvature(measured)
    live = LiveFuse(prepared, held, device=scoring.device, dtype=scoring.dtype)
    with bars("comparing", unit="models") as report:
        entries = compare(
            live,
            read,
            contenders,
            seeds=range(settings.seed, settings.seed + max(1, seeds)),
            best=best,
            batch_size=scoring.batch_size,
            progress=report,
        )
    return Benchmark(
        suite=read.name,
        entries=tuple(entries),
        chosen_on_itself=best is not None and (best.suite.content, best.suite.folder) == (read.content, read.folder),
    )
