"""Scores from elsewhere: a table of models and tasks, and the means that compare them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..fusion.errors import DataError
from ..fusion.table import MEAN_OF_SIDES, Table
from .evaluate import SuiteScores, TaskScore

MEANS = {
    "pretrained": "Source",
    "target": "Target",
    "avg": "Avg",
    "h-score": "H-score",
    "source-target-avg": MEAN_OF_SIDES,
}


def read_lines(file: Path) -> list[list[str]]:
    """Return the cells of a CSV file, without empty lines.

    Raises:
        DataError: It cannot be read, or is empty.
    """
    try:
        lines = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read `{file}`: {error}") from error
    found = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    if not found:
        raise DataError(f"`{file}` is empty")
    return found


def scores_from_table(
    lines: Sequence[Sequence[str]], target: Sequence[str], *, source: str
) -> tuple[Table, list[dict[str, Any]]]:
    """Return a table of scores from elsewhere with its means, and them as plain values.

    Args:
        lines: Names of columns first; the first column names models, each other one is a task.
        target: Which tasks the model was fine-tuned on.
        source: What messages call the lines.

    Raises:
        DataError: A cell is not a number, or there is no such task.
    """
    header, *body = lines
    tasks = list(header[1:])
    unknown = [name for name in target if name not in tasks]
    if unknown or len(set(tasks)) < len(tasks) or not body:
        raise DataError(
            f"`{source}` has no task `{unknown[0]}`"
            if unknown
            else f"`{source}` has two tasks of one name, or no scores",
            hint=f"its tasks are {', '.join(tasks)}",
        )
    rows, values = [], []
    for line in body:
        if len(line) != len(header):
            raise DataError(f"the line of `{line[0] if line else ''}` in `{source}` has {len(line)} cells, "
                            f"expected {len(header)}")  # fmt: skip
        found = []
        for name, cell in zip(tasks, line[1:], strict=True):
            try:
                score = float(cell)
            except ValueError as error:
                raise DataError(f"`{cell}`, the score of `{line[0]}` in `{name}`, is not a number") from error
            side = "target" if name in target else "pretrained"
            found.append(TaskScore(name=name, side=side, scorer="given", score=score, num_rows=0))
        measures = SuiteScores(suite=source, tasks=tuple(found)).measures
        rows.append([line[0], *line[1:], *(f"{measures[name]:.2f}" for name in MEANS if name in measures)])
        values.append({"model": line[0], "measures": measures})
    columns = [*header, *(title for name, title in MEANS.items() if name in values[0]["measures"])]
    return Table(columns=columns, rows=rows), values
