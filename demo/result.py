"""What comes out of the demo, and how sure it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import hypot, sqrt
from pathlib import Path
from typing import Any, Literal

Mean = Literal["avg", "h_score"]


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """One model of the story: how it was made, where it lies, what it scores.

    Attributes:
        target: Percent of the test answers that are right.
        general: Percent of the next tokens of held-out prose that are ranked first.
        perplexity: Of the same prose.
        avg, h_score: Arithmetic and harmonic mean of `target` and `general`.
    """

    name: str
    path: Path
    target: float
    general: float
    perplexity: float
    avg: float
    h_score: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What came out, and what it took.

    Attributes:
        trained: Steps, tokens, seconds and final loss of the fine-tune.
        seconds: Of each stage.
    """

    model: str
    task: str
    tiny: bool
    seed: int
    num_test_answers: int
    num_prose_tokens: int
    trained: dict[str, Any]
    rows: tuple[DemoRow, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        content = asdict(self)
        content["rows"] = [{**asdict(row), "path": str(row.path)} for row in self.rows]
        return content


def standard_error(percent: float, count: int) -> float:
    """Return the standard error of a share of `count` answers, in points.

    The answers are taken as independent, which they are not quite; the seeds of training and masks add theirs.
    """
    share = percent / 100
    return 100 * sqrt(share * (1 - share) / count)


def mean_error(result: DemoResult, row: DemoRow, mean: Mean) -> float:
    """Return the standard error of a row's Avg or H-score, in points, to first order in those of its two scores."""
    target, general = row.target, row.general
    target_error = standard_error(target, result.num_test_answers)
    general_error = standard_error(general, result.num_prose_tokens)
    if mean == "avg":
        return hypot(target_error, general_error) / 2
    total = target + general
    return 2 * hypot(general**2 * target_error, target**2 * general_error) / total**2 if total else 0.0


def best_rows(result: DemoResult, mean: Mean) -> tuple[DemoRow, tuple[DemoRow, ...]]:
    """Return the row with the highest mean, and those that can't be told from it.

    These are less than a standard error of the difference below it. All models answer the same questions, which makes
    differences surer than is reckoned here.
    """
    best = max(result.rows, key=lambda row: getattr(row, mean))
    error = mean_error(result, best, mean)
    close = tuple(
        row
        for row in result.rows
        if row is not best and getattr(best, mean) - getattr(row, mean) < hypot(error, mean_error(result, row, mean))
    )
    return best, close
