"""A model through a suite: each task's score, and the two means that compare models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.encoding import Encoder
from ..data.rows import open_rows
from ..fusion.checkpoint.given import Given as Model
from ..fusion.checkpoint.given import in_folder
from ..fusion.progress import Progress, silent, watched
from ..fusion.rows import OrIgnore, RowOptions
from ..fusion.table import Table
from ..live.model import LiveModel, load_model
from .scores import average, h_score, source_target_average
from .suite import Harness, Suite, TaskSide, read_suite

MEANS = ("pretrained", "target", "avg", "h-score")  # in a line about a model


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One task's score, in [0, 100], and what else its scorer measured.

    Attributes:
        outcomes, luck: As its scorer gives them.
    """

    name: str
    side: TaskSide
    scorer: str
    score: float
    num_rows: int
    figures: Mapping[str, float] = field(default_factory=dict)
    outcomes: tuple[bool, ...] = ()
    luck: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain values, but of single rows."""
        return {name: value for name, value in asdict(self).items() if name not in ("outcomes", "luck")}


@dataclass(frozen=True, kw_only=True)
class SuiteScores:
    """What a model scores on the tasks of a suite, the pre-trained ones first.

    Attributes:
        model: As it was asked for; empty of one that was given as it runs.
    """

    suite: str
    tasks: tuple[TaskScore, ...]
    model: str = field(default="", compare=False)

    def __repr__(self) -> str:
        means = {name: value for name, value in self.measures.items() if name in MEANS}
        told = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
        return f"SuiteScores({self.model or 'a model'} on {self.suite}: {told})"

    def _repr_html_(self) -> str:
        return self.table().html()

    def table(self) -> Table:
        """Return a row a task, and the means below."""
        rows = []
        for task in self.tasks:
            others = ", ".join(f"{name} {value:.4g}" for name, value in task.figures.items())
            rows.append([task.name, task.side, task.scorer, str(task.num_rows), f"{task.score:.2f}", others or "–"])
        note, means = "", self.measures
        if self.has_both_sides:
            note = (
                f"pre-trained {means['pretrained']:.2f}, target {means['target']:.2f}; Avg {means['avg']:.2f}, "
                f"H-score {means['h-score']:.2f}, mean of the two sides {means['source-target-avg']:.2f}"
            )
        columns = ["task", "side", "scorer", "rows", "score", "also"]
        return Table(columns=columns, rows=rows, title=f"{self.model or 'scores'}: {self.suite}", note=note)

    def side(self, side: TaskSide) -> list[float]:
        """Return the scores of one side's tasks."""
        return [task.score for task in self.tasks if task.side == side]

    @property
    def has_both_sides(self) -> bool:
        """Whether Avg and H-score are defined."""
        return bool(self.side("pretrained") and self.side("target"))

    @property
    def measures(self) -> dict[str, float]:
        """Every number that a gate or a choice can name: `avg`, `h-score`, each side's mean, each task.

        Avg is the mean over all tasks, the H-score the harmonic mean of both sides' means, 0 where one is 0 (eq. 14
        and 15 of AdaDARE-γ); `source-target-avg` is the mean of both sides' means (LoRASculpt).
        """
        found: dict[str, float] = {}
        general, target = self.side("pretrained"), self.side("target")
        if general:
            found["pretrained"] = sum(general) / len(general)
        if target:
            found["target"] = sum(target) / len(target)
        if general and target:
            found["avg"] = average(general, target)
            found["h-score"] = h_score(general, target)
            found["source-target-avg"] = source_target_average(general, target)
        return {**{task.name: task.score for task in self.tasks}, **found}

    def as_json(self) -> dict[str, Any]:
        """Return the scores as plain values."""
        return {
            **({"model": self.model} if self.model else {}),
            "suite": self.suite,
            "tasks": [task.as_json() for task in self.tasks],
            "measures": self.measures,
        }


@watched
def evaluate(
    model: Model | LiveModel,
    suite: Path | str | Suite,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    memory_bytes: int | None = None,
    progress: Progress = silent,
) -> SuiteScores:
    """Return the scores of a model on a suite: each task's, in [0, 100], and their means.

    Args:
        model: As `fuse` takes it, or as it runs.
        suite: A YAML file, or one that was read.
        device, dtype, memory_bytes: As for `load_model`.
        batch_size: In place of the suite's.

    Raises:
        SculptError: The suite, its data or the model do not fit each other.
    """
    suite = suite if isinstance(suite, Suite) else read_suite(Path(suite))
    if isinstance(model, LiveModel):
        return score_suite(model, suite, batch_size=batch_size, progress=progress)
    with ExitStack() as stack:
        path = in_folder(model, "model", stack)
        live = stack.enter_context(load_model(path, device=device, dtype=dtype, memory_bytes=memory_bytes))
        scores = score_suite(live, suite, batch_size=batch_size, progress=progress)
    return replace(scores, model=str(path))


def score_suite(
    model: LiveModel,
    suite: Suite,
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> SuiteScores:
    """Return the scores of a live model; all files are opened before the first is scored."""
    from .harness import score_by_harness
    from .job import Job
    from .scorers import SCORERS

    size = batch_size or suite.content.batch_size
    tasks = list(suite.tasks())
    opened = {
        name: open_rows(suite.folder / task.file, task.media and suite.folder / task.media, fields=task.fields).limited(
            task.limit
        )
        for _, name, task in tasks
        if not isinstance(task, Harness)
    }
    length = suite.content.max_length
    ways: set[OrIgnore] = {task.unknown_fields for _, _, task in tasks if not isinstance(task, Harness)}
    encoders = {
        how: Encoder(
            model.path,
            model.model,
            max_length=length,
            options=RowOptions(unknown_fields=how),
            for_scores=True,
            in_suite=True,
        )
        for how in ways
    }
    found = []
    for number, (side, name, task) in enumerate(tasks):
        progress(number, len(tasks), name)
        if isinstance(task, Harness):
            scored = score_by_harness(task, model, batch_size=size, folder=suite.folder)
        else:
            job = Job(
                model=model,
                rows=opened[name],
                encoder=encoders[task.unknown_fields],
                batch_size=size,
                max_length=length,
                advance=_counter(lambda rows, at=number, what=name: progress(at, len(tasks), f"{what}: {rows}")),
            )
            scored = SCORERS[task.scorer](task, job)
        found.append(
            TaskScore(
                name=name,
                side=side,
                scorer=task.scorer,
                score=scored.score,
                num_rows=scored.num_rows,
                figures=scored.figures,
                outcomes=scored.outcomes,
                luck=scored.luck,
            )
        )
    progress(len(tasks), len(tasks), "")
    return SuiteScores(suite=suite.name, tasks=tuple(found))


def _counter(report: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function that adds up what it is given and reports the sum."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        report(done)

    return advance
