"""`gate`: a model judged by limits on its scores, and on what it forgot of its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..fusion.checkpoint.given import Given as Model
from ..fusion.checkpoint.given import takes_models
from ..fusion.errors import MethodError
from ..fusion.progress import Bars, bars
from ..fusion.table import Table
from .evaluate import SuiteScores, evaluate
from .flips import Flips, counted_tasks, flips, parse_percent, worst
from .gate import Limit, Verdict, judge
from .options import Scoring
from .suite import Suite, read_suite


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a gate found.

    Attributes:
        verdicts: One for each limit.
        model: The scores of the model.
        others: Those of `base` and `tuned`, where they were needed.
        flips: How answers flipped from the base's, where a limit on what may be forgotten was given.
        most: That limit, in percent, or None.
    """

    verdicts: tuple[Verdict, ...]
    model: SuiteScores
    others: Mapping[str, SuiteScores] = field(default_factory=dict)
    flips: tuple[Flips, ...] = ()
    most: float | None = None

    def __repr__(self) -> str:
        return f"Judgement({'passed' if self.passed else 'failed'}: {'; '.join(text for _, text in self.sentences)})"

    def _repr_html_(self) -> str:
        rows = [["passed" if holds else "failed", text] for holds, text in self.sentences]
        return Table(columns=["", "limit"], rows=rows).html()

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return all(holds for holds, _ in self.sentences)

    @property
    def sentences(self) -> list[tuple[bool, str]]:
        """Of each limit whether it holds, and how it went."""
        told = [(verdict.passed, verdict.sentence()) for verdict in self.verdicts]
        if self.most is not None:
            first, holds = worst(self.flips), self.keeps
            told.append(
                (
                    holds,
                    f"most was forgotten of {first.name}: {first.forgotten:.2f} % of its answers, {first.lost:.2f} % "
                    f"with what guessing explains, which is {'within' if holds else 'above'} {self.most:g} %",
                )
            )
        return told

    @property
    def keeps(self) -> bool:
        """Whether no more is forgotten than may be."""
        return self.most is None or worst(self.flips).forgotten <= self.most + 1e-9

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        content: dict[str, Any] = {
            "passed": self.passed,
            "limits": [
                {"limit": v.limit.text, "score": v.score, "least": v.least, "passed": v.passed} for v in self.verdicts
            ],
            "model": self.model.as_json(),
            **{name: scores.as_json() for name, scores in self.others.items()},
        }
        if self.most is not None:
            first = worst(self.flips)
            content["flips"] = [one.as_json() for one in self.flips]
            content["forgotten"] = {
                "worst": first.name,
                "percent": first.forgotten,
                "most": self.most,
                "passed": self.keeps,
            }
        return content


@takes_models("model", "base", "tuned")
def gate(
    model: Model,
    suite: Path | str | Suite,
    limits: Sequence[str] = (),
    *,
    max_forgotten: str | float | None = None,
    base: Model | None = None,
    tuned: Model | None = None,
    scoring: Scoring | None = None,
    bars: Bars = bars,
) -> Judgement:
    """Return whether a model may be released: whether it keeps every limit.

    Args:
        limits: Such as `h-score=0.9*base`, `target>=0.97*tuned`, `prose=40`: a task, `pretrained`, `target`, `avg` or
            `h-score`, and a number in [0, 100] or a share of what base or fine-tune score.
        max_forgotten: Most that may be forgotten of the worst pre-trained task, in percent of its answers.
        base, tuned: What these names stand for in a limit.
        bars: Opens a bar for each model that is scored.

    Raises:
        MethodError: There is no limit, one reads otherwise, or the model that it names is not given.
        SculptError: A model cannot be scored.
    """
    parsed = [Limit.parse(limit) for limit in limits]
    most = parse_percent(f"{max_forgotten}") if max_forgotten is not None else None
    read = suite if isinstance(suite, Suite) else read_suite(Path(suite))
    given = {"base": base, "tuned": tuned}
    for limit in parsed:
        limit.check(read.measures())
        if limit.of and given[limit.of] is None:
            raise MethodError(f"`{limit.text}` needs `{limit.of}`", options=[limit.of])
    if most is None and not parsed:
        raise MethodError("a gate needs a limit", options=["limits", "max_forgotten"])
    if most is not None and base is None:
        raise MethodError("`max_forgotten` needs `base`", options=["max_forgotten", "base"])
    if most is not None and not counted_tasks(read, "pretrained"):
        raise MethodError(
            "`max_forgotten` needs a task under `pretrained:` whose answers are right or wrong",
            options=["max_forgotten"],
        )

    def scored(path: Model) -> SuiteScores:
        with bars(f"scoring {path}", unit="tasks") as report:
            return evaluate(path, read, **(scoring or Scoring()).arguments(), progress=report)

    others = {
        name: scored(path)
        for name, path in given.items()
        if path is not None and (most is not None or any(limit.of == name for limit in parsed))
    }
    own = scored(model)
    return Judgement(
        verdicts=tuple(judge(parsed, own.measures, {name: scores.measures for name, scores in others.items()})),
        model=own,
        others=others,
        flips=() if most is None else tuple(flips(others["base"], own, others.get("tuned"))),
        most=most,
    )
