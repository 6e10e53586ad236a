"""Which point of a sweep is the best, by a measure or within a limit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..fusion.errors import MethodError
from .gate import Limit

Measures = Mapping[str, float]
Point = TypeVar("Point")
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The highest `measure` among the points that keep a limit.

    Attributes:
        text: As it was typed.
        limit: None where every point will do.
    """

    text: str
    measure: str
    limit: Limit | None

    @classmethod
    def parse(cls, text: str, known: Collection[str]) -> Pick:
        """Return the choice of `h-score`, `avg`, or `target>=0.97*tuned`: a limit, and the best of what is left.

        A limit on `target` asks for the best `pretrained` within it, one on `pretrained` for the best `target`, any
        other for the best `h-score`.

        Raises:
            MethodError: It reads otherwise, or names what the suite does not measure.
        """
        limit = Limit.parse(text) if "=" in text or ">" in text else None
        named = limit.measure if limit else text.strip()
        others = {"target": "pretrained", "pretrained": "target"}
        measure = named if limit is None else others.get(named, "h-score")
        for name in (named, measure):
            if name not in known:
                names = ", ".join(f"`{name}`" for name in known)
                raise MethodError(
                    f"to pick by {text} takes `{name}`, which the suite does not measure",
                    hint=f"it has {names}",
                )
        return cls(text=text, measure=measure, limit=limit)

    def best(
        self, points: Sequence[Point], measures: Callable[[Point], Measures], others: Mapping[str, Measures]
    ) -> Point:
        """Return the best point; the first of equals.

        Raises:
            MethodError: None keeps the limit.
        """
        kept = [point for point in points if self.holds(measures(point), others)]
        if not kept:
            assert self.limit is not None
            reached = max(measures(point)[self.limit.measure] for point in points)
            raise MethodError(
                f"no point of the sweep keeps `{self.limit.text}`: the most is {reached:.2f}, "
                f"{self.limit.least(others):.2f} is wanted",
                hint="a larger strength or a smaller sparsity may reach it",
            )
        return max(kept, key=lambda point: measures(point)[self.measure])

    def holds(self, measures: Measures, others: Mapping[str, Measures]) -> bool:
        """Return whether the limit is kept."""
        return self.limit is None or measures[self.limit.measure] >= self.limit.least(others) - 1e-9


def golden_section(function: Callable[[float], float], low: float, high: float, tolerance: float) -> None:
    """Call `function` where its maximum in [low, high] is sought, until that is known within `tolerance`.

    Each call but the first two cuts the interval to 0.618 of itself. It finds the maximum of a function that has one;
    of one with several, one of them. The caller keeps what it saw.
    """
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(right)


def least_that_holds(holds: Callable[[float], bool], low: float, high: float, tolerance: float) -> None:
    """Call `holds` where the least strength that keeps a limit is sought, by bisection."""
    if holds(low) or not holds(high):
        return
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
