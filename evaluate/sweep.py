"""Strengths and sparsities tried on a running model: what each scores, and which is best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..fusion.arithmetic.two_sided import Protection
from ..fusion.methods import AdaDare, Method, TaskArithmetic
from ..fusion.progress import Progress, silent
from .choice import Pick, golden_section, least_that_holds
from .evaluate import SuiteScores, score_suite
from .live_fuse import Distance, LiveFuse
from .per_block import BlockLoss, block_losses, block_strengths
from .points import Point, Spot, Sweep
from .resume import KnownPoints
from .strengths import Family
from .suite import Suite

TOLERANCE = 0.02  # of the strength that `auto` finds
DECADES = 2.0  # to either side of 1, where `auto` looks for the weight of a protection


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is tried.

    Attributes:
        strengths: None searches for the best one.
        sparsities: For the methods that take one; empty for their own default.
        per_block: Try a γ for each block too, beside one for all, where the method is AdaDARE-γ.
        seeds: Of what is random; empty for the one of the settings. Other methods are tried once.
        protection: How the base is protected; then `strengths` are weights of that, and γ is `gamma`.
    """

    families: tuple[Family, ...]
    strengths: tuple[float, ...] | None
    sparsities: tuple[float, ...] = ()
    per_block: bool = False
    seeds: tuple[int, ...] = ()
    protection: Protection | None = None
    gamma: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def curves(self) -> list[tuple[Family, float | None, bool]]:
        """Return family, sparsity and whether each block has its own γ, one a curve."""
        found: list[tuple[Family, float | None, bool]] = []
        for family in self.families:
            sparsities: Sequence[float | None] = self.sparsities if family.takes_sparsity else (None,)
            for sparsity in sparsities or (_own_sparsity(family.method),):
                found.append((family, sparsity, False))
                if self.per_block and self.protection is None and isinstance(family.method, AdaDare):
                    found.append((family, sparsity, True))
        return found


def _own_sparsity(method: Method) -> float | None:
    value = getattr(method, "sparsity", None)
    density = getattr(method, "density", None)
    return value if isinstance(value, float) else (1 - density if isinstance(density, float) else None)


def run_sweep(
    live: LiveFuse,
    suite: Suite,
    grid: Grid,
    pick: Pick,
    *,
    batch_size: int | None = None,
    tolerance: float = TOLERANCE,
    scored: KnownPoints | None = None,
    progress: Progress = silent,
) -> Sweep:
    """Return the scores of every point of the grid, or of those at which the best strength was sought.

    Args:
        pick: What the search for a strength goes by.
        scored: What a run that was killed has scored already; what this one scores is added. Of several processes
            each scores points of its own, whole searches where strengths are sought, and learns the others'.
        progress: Told the points done, and how many there will be (of a search, 0: nobody knows).
    """
    return _Sweeper(
        live, suite, grid, pick, batch_size=batch_size, tolerance=tolerance, scored=scored, progress=progress
    ).run()


def num_points(grid: Grid) -> int:
    """Return how many points there will be, base and fine-tune among them; 0 where a search will tell."""
    total = 2
    for family, *_ in grid.curves():
        draws = max(1, len(grid.seeds)) if family.method.random else 1
        if family.takes_strength or grid.protection is not None:
            if grid.strengths is None:
                return 0
            draws *= len(grid.strengths)
        total += draws
    return total


class _Sweeper:
    def __init__(
        self,
        live: LiveFuse,
        suite: Suite,
        grid: Grid,
        pick: Pick,
        *,
        batch_size: int | None,
        tolerance: float,
        scored: KnownPoints | None,
        progress: Progress,
    ) -> None:
        self.scored = scored
        self.live, self.suite, self.grid, self.pick = live, suite, grid, pick
        self.batch_size, self.tolerance, self.progress = batch_size, tolerance, progress
        self.points: list[Point] = []
        self.losses: dict[Method, dict[str, BlockLoss]] = {}
        self.total = num_points(grid)

    def run(self) -> Sweep:
        references = (("base", 0.0), ("tuned", 1.0))
        self._run([partial(self._score, name, scale, None, TaskArithmetic(scale=scale)) for name, scale in references])
        jobs: list[Callable[[], object]] = []
        for family, sparsity, per_block in self.grid.curves():
            if not family.takes_strength and self.grid.protection is None:
                jobs.append(partial(self._try, family, 1.0, sparsity, per_block))
            elif self.grid.strengths is None:
                jobs.append(partial(self._search, family, sparsity, per_block))
            else:
                jobs += [partial(self._try, family, strength, sparsity, per_block) for strength in self.grid.strengths]
        self._run(jobs)
        self.progress(len(self.points), len(self.points), "")
        return Sweep(points=tuple(self.points))

    def _run(self, jobs: Sequence[Callable[[], object]]) -> None:
        """Run what scores points; of several processes each its share, and then all what is known by then."""
        if self.scored is not None and self.scored.processes.are_several:
            done = [*self.points]
            for job in jobs[self.scored.processes.rank :: self.scored.processes.count]:
                job()
            self.points = done
            self.scored.exchange()
        for job in jobs:
            job()

    def _search(self, family: Family, sparsity: float | None, per_block: bool) -> None:
        """Try strengths until the best is known within the tolerance."""
        references = {point.family: point.scores.measures for point in self.points if point.is_reference}

        protects = self.grid.protection is not None

        def measures(place: float) -> Mapping[str, float]:
            strength = 10.0**-place if protects else place  # from near the base to the fine-tune, as γ goes
            return self._try(family, strength, sparsity, per_block).measures

        low, high = (-DECADES, DECADES) if protects else (self.grid.low, self.grid.high)
        if self.pick.limit is None:
            golden_section(lambda strength: measures(strength)[self.pick.measure], low, high, self.tolerance)
        else:
            least_that_holds(lambda at: self.pick.holds(measures(at), references), low, high, self.tolerance)

    def _try(self, family: Family, strength: float, sparsity: float | None, per_block: bool) -> Spot:
        protection, blocks = self.grid.protection, None
        if protection is not None:
            method = family.at(self.grid.gamma, sparsity).for_models(1)
            protection = replace(protection, weight=strength)
        else:
            method = family.at(strength, sparsity).for_models(1)
            blocks = block_strengths(self._losses(method), strength) if per_block else None
        own = self.live.prepared.settings.seed
        seeds = self.grid.seeds or (own,)
        found = []
        for seed in seeds if method.random else seeds[:1]:
            self.live.reseed(seed)
            found.append(self._score(family.text, strength, sparsity, method, blocks, protection))
        self.live.reseed(own)
        return Spot(points=tuple(found))

    def _losses(self, method: Method) -> dict[str, BlockLoss]:
        assert isinstance(method, AdaDare)
        without = replace(method, gamma=0.5, eta=None, eta_relative=None)
        if without not in self.losses:
            at_half, at_one = (self.live.fused(replace(without, gamma=gamma)).records for gamma in (0.5, 1.0))
            self.losses[without] = block_losses(without, at_half, at_one)
        return self.losses[without]

    def _score(
        self,
        family: str,
        strength: float,
        sparsity: float | None,
        method: Method,
        blocks: Mapping[str, float] | None = None,
        protection: Protection | None = None,
    ) -> Point:
        self.progress(len(self.points), self.total, f"{family} {strength:.3g}")
        seed = self.live.prepared.settings.seed
        known = self.scored and self.scored.find(method, blocks, protection, seed)
        distance, scores, seconds = known or self._scored(method, blocks, protection)
        point = Point(
            family=family,
            strength=strength,
            sparsity=sparsity,
            blocks=blocks,
            method=method,
            scores=scores,
            distance=distance,
            fuse_seconds=seconds[0],
            score_seconds=seconds[1],
            protection=protection,
            seed=seed,
        )
        self.points.append(point)
        if self.scored is not None and not known:
            self.scored.add(point)
        return point

    def _scored(
        self, method: Method, blocks: Mapping[str, float] | None, protection: Protection | None
    ) -> tuple[Distance, SuiteScores, tuple[float, float]]:
        """Return how far a fused model is from its base, what it scores, and the seconds of setting and scoring it."""
        before = self.live.seconds
        distance = self.live.set(method, blocks, protection)
        start = time.perf_counter()
        scores = score_suite(self.live.live, self.suite, batch_size=self.batch_size)
        return distance, scores, (self.live.seconds - before, time.perf_counter() - start)
