"""The papers' table: the base, the fine-tune, and methods, each at a fixed or at its best strength, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from ..fusion.arithmetic.two_sided import Protection
from ..fusion.errors import MethodError
from ..fusion.methods import AdaDare, Method, TaskArithmetic, TwoSided
from ..fusion.progress import Progress, silent
from ..fusion.table import Table, with_deviation
from .choice import Pick
from .evaluate import SuiteScores, score_suite
from .live_fuse import LiveFuse
from .strengths import Family
from .suite import Suite

# The rows of the AdaDARE-γ paper's tables, and both allocations.
PAPERS = ("ties", "dare", "tailor", "adadare", "adadare:allocation=exact")
MEANS = {"avg": "Avg", "h-score": "H-score"}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method of the table.

    Attributes:
        text: As it was typed.
        method: At the strength that it has unless the best is sought.
        protection: Of the base; then its weight is the strength.
    """

    text: str
    method: Method
    protection: Protection | None = None

    @classmethod
    def parse(cls, text: str, protection: Protection | None) -> Contender:
        """Return the contender of `dare:sparsity=0.8`, or of `two-sided`, which needs a protection.

        Raises:
            MethodError: There is no such.
        """
        if text != TwoSided.name:
            return cls(text=text, method=Family.parse(text).method)
        if protection is None:
            raise MethodError("two-sided curvature needs general samples to protect the base on", options=["protect"])
        return cls(text=text, method=TwoSided(), protection=protection)

    def at(self, strength: float) -> Contender:
        """Return it at another strength."""
        if self.protection is not None:
            return replace(self, protection=replace(self.protection, weight=strength))
        return replace(self, method=Family(text=self.text, method=self.method).at(strength))

    @property
    def has_strength(self) -> bool:
        """Whether there is one to choose."""
        return self.protection is not None or Family(text=self.text, method=self.method).takes_strength

    @property
    def strength(self) -> float | None:
        """γ, λ, or the weight of the protection."""
        if self.protection is not None:
            return self.protection.weight
        return getattr(self.method, "gamma" if isinstance(self.method, AdaDare) else "scale", None)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row.

    Attributes:
        strength: What it was scored at, or None where there is none.
        scores: One for each seed.
    """

    name: str
    strength: float | None
    scores: tuple[SuiteScores, ...]

    def cell(self, measure: str) -> str:
        """Return a measure, mean ± deviation over the seeds."""
        values = [scores.measures[measure] for scores in self.scores]
        return with_deviation(fmean(values), stdev(values) if len(values) > 1 else 0.0)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"name": self.name, "strength": self.strength, "seeds": [scores.as_json() for scores in self.scores]}


@dataclass(frozen=True, kw_only=True)
class Best:
    """How strengths are chosen.

    Attributes:
        suite: What they are chosen on, other than what is reported.
        pick: By which of its measures.
        strengths: That are tried.
        weights: Of a protection, that are tried.
    """

    suite: Suite
    pick: Pick
    strengths: Sequence[float]
    weights: Sequence[float]


def compare(
    live: LiveFuse,
    suite: Suite,
    contenders: Sequence[Contender],
    *,
    seeds: Sequence[int],
    best: Best | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> list[Entry]:
    """Return the row of the base, of the fine-tune and of each method.

    Args:
        seeds: Methods that draw are scored once for each, others once.
        best: Without it each is scored at the strength that it has.
    """
    tried = 0 if best is None else sum(_grid(best, one)[1] for one in contenders)
    total = 2 + tried + sum(len(seeds) if one.method.random else 1 for one in contenders)
    done = 0

    def scored(one: Contender, on: Suite, seed: int) -> SuiteScores:
        nonlocal done
        progress(done, total, one.text)
        done += 1
        live.reseed(seed)
        live.set(one.method, None, one.protection)
        return score_suite(live.live, on, batch_size=batch_size)

    def chosen(one: Contender, references: Mapping[str, Mapping[str, float]]) -> Contender:
        if best is None or not one.has_strength:
            return one
        found = [one.at(strength) for strength in _grid(best, one)[0]]
        measures = {other.strength: scored(other, best.suite, seeds[0]).measures for other in found}
        return best.pick.best(found, lambda other: measures[other.strength], references)

    ends = {
        "zero-shot": Contender(text="base", method=TaskArithmetic(scale=0.0)),
        "fine-tune": Contender(text="tuned", method=TaskArithmetic(scale=1.0)),
    }
    entries = [Entry(name=name, strength=None, scores=(scored(one, suite, seeds[0]),)) for name, one in ends.items()]
    references: dict[str, Mapping[str, float]] = {}
    if best is not None and best.pick.limit is not None:
        references = {one.text: scored(one, best.suite, seeds[0]).measures for one in ends.values()}
    for contender in contenders:
        one = chosen(contender, references)
        own = seeds if one.method.random else seeds[:1]
        entries.append(
            Entry(name=one.text, strength=one.strength, scores=tuple(scored(one, suite, seed) for seed in own))
        )
    progress(done, done, "")
    return entries


def _grid(best: Best, one: Contender) -> tuple[Sequence[float], int]:
    strengths = best.weights if one.protection is not None else best.strengths
    return strengths, len(strengths) if one.has_strength else 0


def table_of(entries: Sequence[Entry]) -> Table:
    """Return the rows as a table: the strength, each task, Avg and H-score."""
    first = entries[0].scores[0]
    tasks = [task.name for task in first.tasks]
    means = [name for name in MEANS if name in first.measures]
    rows = [
        [entry.name, "–" if entry.strength is None else f"{entry.strength:g}", *map(entry.cell, (*tasks, *means))]
        for entry in entries
    ]
    return Table(columns=["method", "strength", *tasks, *(MEANS[name] for name in means)], rows=rows)
