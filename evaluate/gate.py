"""Whether a model is good enough to be released: limits on scores, some relative to its base."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..fusion.errors import MethodError

NUMBER = r"\d+(?:\.\d+)?"
PATTERN = re.compile(
    rf"(?P<measure>[^=<>]+?)\s*(?:>=|=)\s*(?:(?P<factor>{NUMBER})\s*\*\s*(?P<of>base|tuned)"
    rf"|(?P<model>base|tuned)(?:\s*(?P<change>[+-]\s*{NUMBER}))?|(?P<value>{NUMBER}))"
)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """`measure >= factor·(that of `of`) + offset`; without `of` the offset alone."""

    text: str
    measure: str
    factor: float
    of: str | None
    offset: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Return the limit of `h-score=0.9*base`, `avg>=base-1` or `prose=40`.

        Raises:
            MethodError: It reads otherwise.
        """
        found = PATTERN.fullmatch(text.strip())
        if found is None:
            known = "`h-score=0.9*base`, `target>=0.97*tuned`, `prose=base-1`, `avg=40`"
            raise MethodError(f"`{text}` is not a limit", hint=f"limits look like {known}")
        offset = (found["change"] or "0").replace(" ", "") if found["value"] is None else found["value"]
        return cls(
            text=text.strip(),
            measure=found["measure"].strip(),
            factor=float(found["factor"] or 1),
            of=found["of"] or found["model"],
            offset=float(offset),
        )

    def check(self, known: Collection[str]) -> None:
        """Raise MethodError unless the measure is one that the suite has."""
        if self.measure not in known:
            names = ", ".join(f"`{name}`" for name in known)
            raise MethodError(f"`{self.text}` names no measure of the suite", hint=f"it has {names}")

    def least(self, others: Mapping[str, Mapping[str, float]]) -> float:
        """Return the number that must be reached, given the measures of `base` and `tuned`."""
        return self.offset + (self.factor * others[self.of][self.measure] if self.of else 0.0)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One limit and what the model reached; `passed` within rounding."""

    limit: Limit
    score: float
    least: float

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return self.score >= self.least - 1e-9

    def sentence(self) -> str:
        """Say how it went: `h-score is 41.20, which is below 0.9*base = 43.00`."""
        wanted = f"{self.least:.2f}"
        if self.limit.of:
            change = f" {self.limit.offset:+g}" if self.limit.offset else ""
            factor = f"{self.limit.factor:g}·" if self.limit.factor != 1 else ""
            wanted = f"{factor}{self.limit.of}{change} = {wanted}"
        return f"{self.limit.measure} is {self.score:.2f}, which {'reaches' if self.passed else 'is below'} {wanted}"


def judge(
    limits: Sequence[Limit], measures: Mapping[str, float], others: Mapping[str, Mapping[str, float]]
) -> list[Verdict]:
    """Return a verdict for each limit.

    Raises:
        MethodError: A limit names what the suite does not measure.
    """
    for limit in limits:
        limit.check(measures)
    return [Verdict(limit=limit, score=measures[limit.measure], least=limit.least(others)) for limit in limits]
