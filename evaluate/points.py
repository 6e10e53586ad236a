"""What a sweep found: a point for each fused model, and all of them as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ..fusion.arithmetic.two_sided import Protection
from ..fusion.methods import Method, TwoSided
from ..fusion.table import Table, with_deviation
from .choice import Pick
from .strengths import strength_field

if TYPE_CHECKING:
    from .evaluate import SuiteScores
    from .live_fuse import Distance


@dataclass(frozen=True, kw_only=True)
class Point:
    """One fused model of a sweep.

    Attributes:
        family: As it was typed; `base` and `tuned` for the two that everything is compared with.
        strength: γ or λ; with blocks, the γ̄ whose expected distance theirs have together; where the base is protected,
            the weight of that.
        blocks: A γ for each block, or None.
        method: What fuses it; of `base` and `tuned` as well.
        protection: How the base is protected, or None.
        seed: Of what is random.
        fuse_seconds, score_seconds: What it took.
    """

    family: str
    strength: float
    sparsity: float | None
    blocks: Mapping[str, float] | None
    method: Method
    scores: SuiteScores
    distance: Distance
    fuse_seconds: float
    score_seconds: float
    protection: Protection | None = None
    seed: int = 0

    @property
    def label(self) -> str:
        """What tells its curve from others: `adadare p=0.9, γ per block`."""
        sparsity = "" if self.sparsity is None else f" p={self.sparsity:g}"
        per_block = ", γ per block" if self.blocks is not None else ""
        if self.protection is None:
            return f"{self.family}{sparsity}{per_block}"
        form = "" if self.protection.curvature == "full" else f" ({self.protection.curvature})"
        return f"{TwoSided.name}{form}" + ("" if self.method.protects else f", then {self.family}{sparsity}")

    @property
    def strength_is(self) -> str:
        """What the strength is: `gamma`, `scale`, or `lambda`, the weight of the protection; empty of what has none."""
        if self.protection is not None:
            return "lambda"
        return "" if self.is_reference else strength_field(type(self.method)) or ""

    @property
    def told_strength(self) -> str:
        """The strength with its letter: `λ = 0.3`."""
        sign = {"lambda": "λ", "gamma": "γ"}.get(self.strength_is, self.strength_is or "strength")
        return f"{sign} = {self.strength:.4g}"

    @property
    def name(self) -> str:
        """What tells it from the other points of a sweep, but for its seed: `two-sided, λ = 0.3`."""
        return f"{self.label}, {self.told_strength}" if self.strength_is else self.label

    @property
    def is_reference(self) -> bool:
        """Whether it is the base or the fine-tune itself."""
        return self.family in ("base", "tuned")

    def as_json(self) -> dict[str, Any]:
        """Return the point as plain values."""
        return {
            "name": self.name,
            "family": self.family,
            "strength": self.strength,
            "strength_is": self.strength_is,
            "sparsity": self.sparsity,
            "seed": self.seed,
            "blocks": None if self.blocks is None else dict(self.blocks),
            "method": self.method.name,
            "options": self.method.options(),
            "protection": None if self.protection is None else asdict(self.protection),
            "distance_l1": self.distance.l1,
            "realised_sparsity": self.distance.sparsity,
            "fuse_seconds": self.fuse_seconds,
            "score_seconds": self.score_seconds,
            **self.scores.as_json(),
        }


def _cells(point: Point) -> list[str]:
    if point.is_reference:
        return [point.family, "–", "–", f"{point.distance.l1:.4g}"]
    return [point.label, f"{point.strength:.3f}", f"{point.distance.sparsity:.2%}", f"{point.distance.l1:.4g}"]


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One place of a curve: the points of all seeds there."""

    points: tuple[Point, ...]

    @property
    def first(self) -> Point:
        """The point of the first seed."""
        return self.points[0]

    @property
    def measures(self) -> dict[str, float]:
        """Means over the seeds."""
        return {name: fmean(self._values(name)) for name in self.first.scores.measures}

    def deviation(self, measure: str) -> float:
        """Return the standard deviation over the seeds; 0 of one."""
        values = self._values(measure)
        return stdev(values) if len(values) > 1 else 0.0

    @property
    def realised_sparsity(self) -> float:
        """The share of deltas that was dropped, mean over the seeds."""
        return fmean(point.distance.sparsity for point in self.points)

    def _values(self, measure: str) -> list[float]:
        return [point.scores.measures[measure] for point in self.points]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep found.

    Attributes:
        points: The base and the tuned model first.
        suite: The name of the suite.
        seed: The first.
        picked: The point that was chosen, or None.
        output: Where table, charts and figures are, or None.
        model: Where the chosen model is, or None.
    """

    points: tuple[Point, ...]
    suite: str = ""
    seed: int = 0
    picked: Point | None = None
    output: Path | None = None
    model: Path | None = None

    def __repr__(self) -> str:
        best = "" if self.picked is None else f", picked {self.picked.name}"
        return f"Sweep({len(self.tried)} points of {self.suite or 'a suite'}{best})"

    def _repr_html_(self) -> str:
        from .charts import as_image

        return self.table().html() + as_image(self)

    def table(self) -> Table:
        """Return a row for the base, the fine-tune and each place of a curve; means over the seeds."""
        known = self.points[0].scores.measures
        measures = [name for name in ("target", "pretrained", "avg", "h-score") if name in known]
        references = [Spot(points=(point,)) for point in self.points if point.is_reference]  # of one seed alone
        rows = [
            [*_cells(spot.first), *(with_deviation(spot.measures[name], spot.deviation(name)) for name in measures)]
            for spot in (*references, *self.spots)
        ]
        columns = ["model", "strength", "dropped", "L1 distance", *measures]
        return Table(columns=columns, rows=rows, title=f"sweep: {self.suite}")

    def as_json(self) -> dict[str, Any]:
        """Return what `sweep.json` holds."""
        content: dict[str, Any] = {
            "suite": self.suite,
            "seed": self.seed,
            "points": [point.as_json() for point in self.points],
        }
        return content if self.picked is None else {**content, "picked": self.picked.as_json()}

    @property
    def tried(self) -> tuple[Point, ...]:
        """The fused ones."""
        return tuple(point for point in self.points if not point.is_reference)

    @property
    def references(self) -> dict[str, Mapping[str, float]]:
        """Measures of the base and of the tuned model."""
        return {point.family: point.scores.measures for point in self.points if point.is_reference}

    @property
    def spots(self) -> tuple[Spot, ...]:
        """The fused ones, those that differ in their seed alone as one."""
        groups: dict[tuple[str, float, float | None], list[Point]] = {}
        for point in self.tried:
            groups.setdefault((point.label, point.strength, point.sparsity), []).append(point)
        return tuple(Spot(points=tuple(group)) for group in groups.values())

    def best(self, pick: Pick) -> Point:
        """Return the point that is chosen, by means over the seeds; of its seeds the first.

        Raises:
            MethodError: None keeps the limit.
        """
        return pick.best(self.spots, lambda spot: spot.measures, self.references).first

    def as_csv(self) -> str:
        """Return a table with one line a point."""
        measures = list(self.points[0].scores.measures)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            [
                *("method", "strength", "strength_is", "sparsity", "protection", "seed", "per_block"),
                *("realised_sparsity", "distance_l1", *measures),
            ]
        )
        for point in self.points:
            writer.writerow(
                [
                    point.family,
                    point.strength,
                    point.strength_is,
                    "" if point.sparsity is None else point.sparsity,
                    "" if point.protection is None else point.protection.curvature,
                    point.seed,
                    int(point.blocks is not None),
                    f"{point.distance.sparsity:.6g}",
                    f"{point.distance.l1:.6g}",
                    *(f"{point.scores.measures[name]:.6g}" for name in measures),
                ]
            )
        return text.getvalue()
