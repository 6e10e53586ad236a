"""How far a model is from its base on data of one's own, or on the tasks of a suite: no labels are needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..data.encoding import Encoder
from ..data.example import Example
from ..data.row import Row
from ..data.rows import Rows, chosen, open_rows
from ..drift.movement import Movement, ToCompare, movement, movement_on
from ..drift.reader import HowToRun, Reader
from ..fusion.checkpoint import open_checkpoint
from ..fusion.checkpoint.given import Given as Model
from ..fusion.checkpoint.given import takes_models
from ..fusion.errors import CheckpointError
from ..fusion.file_kinds import MANIFEST
from ..fusion.progress import Progress, silent, watched
from ..fusion.record.manifest import Manifest, sides_of
from ..fusion.rows import OrIgnore, RowOptions
from ..fusion.run.calibration import GENERAL
from .scorers import right_choice
from .suite import Harness, MultipleChoice, OnFile, Suite
from .vqa import people_of

logger = logging.getLogger(__name__)

TOKENS = 2048  # of each file or task that are compared
MAX_LENGTH = 512


@watched
@takes_models("base", "model")
def moved_from(
    base: Model,
    model: Model,
    how: HowToRun | None = None,
    *,
    data: Sequence[Path] = (),
    suite: Suite | None = None,
    progress: Progress = silent,
) -> Movement:
    """Return how far a model's next tokens are from its base's: on data, on a suite's tasks, else on the general set.

    Raises:
        ModelError: The models cannot be compared.
        DataError: Data cannot be read, or hold nothing to predict.
    """
    opened, how = open_checkpoint(base), how or HowToRun()
    if not data and suite is None:
        return movement(opened, model, how, measured=_protected_on(model), progress=progress)
    sides: list[tuple[str, Rows, OnFile | None]] = [(file.name, open_rows(file), None) for file in data]
    skipped: list[str] = []
    for folder, name, task in [] if suite is None else [(suite.folder, name, task) for _, name, task in suite.tasks()]:
        if isinstance(task, Harness):
            skipped.append(name)
            continue
        media = task.media and folder / task.media
        sides.append((name, open_rows(folder / task.file, media, fields=task.fields).limited(task.limit), task))

    def drawn(reader: Reader) -> ToCompare:
        ways: set[OrIgnore] = {"error" if task is None else task.unknown_fields for *_, task in sides}
        encoders = {
            way: Encoder(
                reader.folder,
                reader.model,
                max_length=MAX_LENGTH,
                options=RowOptions(unknown_fields=way),
                in_suite=suite is not None,
                trust_remote_code=how.trust_remote_code,
            )
            for way in ways
        }
        found = [
            one
            for name, rows, task in sides
            for one in _examples(encoders["error" if task is None else task.unknown_fields], name, rows, task)
        ]
        return found, [*(name for name, *_ in sides), *skipped]

    return movement_on(drawn, opened, model, how, progress=progress)


def _protected_on(model: Path) -> list[tuple[int, Mapping[str, int]]]:
    """Return what of the general set a model was protected on, of each draw the seed and the samples of each kind."""
    try:
        curvature = (Manifest.read(model).curvature or {}) if (model / MANIFEST).is_file() else {}
    except CheckpointError as error:
        logger.warning("rows that `%s` was protected on may be among those that are compared: %s", model, error.message)
        return []
    return [
        (one["seed"], dict(one.get("kind_samples") or ()))
        for one in sides_of(curvature, "general")
        if one.get("data") == GENERAL
    ]


def _examples(encoder: Encoder, name: str, rows: Rows, task: OnFile | None) -> Iterator[Example]:
    """Yield examples of rows drawn, until enough of their tokens are to be predicted."""
    left = TOKENS
    for number in chosen(rows.count, rows.count, 0):
        for example in encoder.examples(_answered(rows.row(number), task))[:1]:
            if example.num_predicted:
                yield replace(example, kind=name)
                left -= example.num_predicted
        if left <= 0:
            return


def _answered(row: Row, task: OnFile | None) -> Row:
    """Return a task's row with its right answer as what follows the prompt; any other row as it is."""
    if "prompt" not in row or "completion" in row:
        return row
    if isinstance(task, MultipleChoice):
        choices = task.choices or row.texts("choices")
        return row.completed(choices[right_choice(row, choices)])
    if "answers" in row:
        return row.completed(people_of(row)[0])
    given = next((key for key in ("answer", "references") if key in row), None)
    return row if given is None else row.completed(row.texts(given)[0])
