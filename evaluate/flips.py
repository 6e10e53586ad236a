"""What a model forgot of its base and what it learned, answer by answer: in a mean over a task one hides the other.

Right before and wrong after is lost, wrong before and right after is won. Some of both is guessing. Suppose that a
model knows an answer or picks one of k alike: of its guesses (k − 1)/k are wrong and 1/k are right, so a share 1 − a
that is wrong stands for (1 − a)/(k − 1) that is right by luck. Guesses before and after that have nothing to do with
one another are lucky and then wrong, and likewise wrong and then lucky, for

    (1 − a)/(k − 1)·(1 − b)        a, b: the shares that are right before and after

of the answers. What is left is forgotten and learned. The same suppositions are behind the adjustment for chance of
Harmon et al., Mapping Post-Training Forgetting in Language Models at Scale (arXiv:2510.17776). Luck goes both ways
alike, so no less is forgotten than is lost more than won: where a model does not guess anew, as one that is close to
its base does not, that is what remains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..fusion.errors import DataError, MethodError
from ..fusion.table import Table
from .evaluate import SuiteScores, TaskScore
from .suite import Classification, ExactMatch, MultipleChoice, Suite, TaskSide, Vqa

COUNTED = (ExactMatch, MultipleChoice, Classification, Vqa)  # tasks whose answers are right or wrong
PERCENT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%?")


@dataclass(frozen=True, kw_only=True)
class Flips:
    """One task before and after, in percent.

    Attributes:
        lost, won: Of all rows, those that were right before alone, and after alone.
        by_luck: What is expected of each by luck.
        forgotten, learned: What luck does not explain of them.
        preserved: Of what the base had right, what is right still.
        healed: Of what the base had right and the fine-tune wrong, what is right again.
        retained: Of what the fine-tune had right, what is right still.

    The last three are None where they are shares of nothing.
    """

    name: str
    side: TaskSide
    num_rows: int
    lost: float
    won: float
    by_luck: float
    forgotten: float
    learned: float
    preserved: float | None
    healed: float | None = None
    retained: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values; what is retained of the fine-tune is non-damage on what the base could do before."""
        values = dict(vars(self))
        values["target_retention" if self.side == "target" else "non_damage"] = values.pop("retained")
        return values


def counted_tasks(suite: Suite, side: TaskSide | None = None) -> list[str]:
    """Return the names of a suite's tasks whose answers are right or wrong."""
    return [name for own, name, task in suite.tasks() if isinstance(task, COUNTED) and side in (None, own)]


def flips(base: SuiteScores, model: SuiteScores, tuned: SuiteScores | None = None) -> list[Flips]:
    """Return how the answers of each task flipped from the base to a model; of tasks whose answers are right or wrong.

    Raises:
        DataError: Two models answered other rows.
    """
    others = [None] * len(model.tasks) if tuned is None else tuned.tasks
    return [
        _flips(before, after, third)
        for before, after, third in zip(base.tasks, model.tasks, others, strict=True)
        if after.outcomes
    ]


def table_of_flips(found: Sequence[Flips], *, with_tuned: bool) -> Table:
    """Return a row a task, in percent, and the means over the tasks of each side.

    Args:
        with_tuned: Whether the fine-tune answered too.
    """

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    columns = ["task", "side", "rows", "lost", "won", "by luck", "forgotten", "learned", "preserved"]
    columns += ["healed", "non-damage", "target retention"] if with_tuned else []
    rows = []
    for one in found:
        kept = [one.lost, one.won, one.by_luck, one.forgotten, one.learned, one.preserved]
        if with_tuned:
            is_target = one.side == "target"
            kept += [one.healed, None if is_target else one.retained, one.retained if is_target else None]
        rows.append([one.name, one.side, str(one.num_rows), *map(percent, kept)])
    title = "answers that flipped from the base's, in percent"
    return Table(columns=columns, rows=rows, title=title, note=_means(found))


def _means(found: Sequence[Flips]) -> str:
    """Return the means over the tasks of each side."""
    general, target = ([one for one in found if one.side == side] for side in ("pretrained", "target"))
    values = {
        "forgotten": [one.forgotten for one in general],
        "preserved": [one.preserved for one in general],
        "healed": [one.healed for one in general],
        "non-damage": [one.retained for one in general],
        "target retention": [one.retained for one in target],
    }
    means = {name: [value for value in some if value is not None] for name, some in values.items()}
    told = ", ".join(f"{name} {fmean(some):.2f} %" for name, some in means.items() if some)
    return f"means over tasks: {told}" if told else "no task of the pre-trained side was compared"


def _flips(before: TaskScore, after: TaskScore, tuned: TaskScore | None) -> Flips:
    rows = list(_together(before, after, before if tuned is None else tuned))
    count = len(rows)
    lost = 100 * sum(b and not m for b, m, _ in rows) / count
    won = 100 * sum(m and not b for b, m, _ in rows) / count
    luck = 100 * after.luck * sum(not b for b, _, _ in rows) * sum(not m for _, m, _ in rows) / count**2
    return Flips(
        name=after.name,
        side=after.side,
        num_rows=count,
        lost=lost,
        won=won,
        by_luck=luck,
        forgotten=max(0.0, lost - luck, lost - won),
        learned=max(0.0, won - luck, won - lost),
        preserved=_share([m for b, m, _ in rows if b]),
        healed=None if tuned is None else _share([m for b, m, t in rows if b and not t]),
        retained=None if tuned is None else _share([m for _, m, t in rows if t]),
    )


def _together(*tasks: TaskScore) -> Iterator[tuple[bool, ...]]:
    if len({len(task.outcomes) for task in tasks}) > 1:
        raise DataError(f"of `{tasks[0].name}` two models answered other numbers of rows")
    return zip(*(task.outcomes for task in tasks), strict=True)


def _share(right: Sequence[bool]) -> float | None:
    return 100 * sum(right) / len(right) if right else None


def worst(found: Sequence[Flips]) -> Flips:
    """Return the task of those that the base could do before of which most was forgotten."""
    return max((one for one in found if one.side == "pretrained"), key=lambda one: one.forgotten)


def parse_percent(text: str) -> float:
    """Return the number of `2%` or `2`.

    Raises:
        MethodError: It reads otherwise.
    """
    found = PERCENT.fullmatch(text.strip())
    if found is None or float(found[1]) > 100:
        raise MethodError(f"`{text}` is no share of the answers", hint="it looks like `2%`")
    return float(found[1])
