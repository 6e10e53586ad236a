"""What a checkpoint scores: the target task by teacher forcing, general text and names by predicting them."""

from __future__ import annotations

import json
import math
import os
import time
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from sculpt.data.example import Example
from sculpt.demo.score import measure
from tasks import GENERAL, TASKS

SPLITS = ("validation", "test")  # strengths are chosen on the first


@cache
def rows_of(task: str, split: str) -> dict[str, list[Example]]:
    goal = TASKS[task]
    targets = {part: TASKS[part].examples[split] for part in goal.parts} or {"target": goal.examples[split]}
    sources = targets | {name: GENERAL[name](split) for name in goal.scored[split]}
    return {name: [goal.model.encode(item) for item in items] for name, items in sources.items()}


def score(work: Path, folder: Path, task: str, split: str) -> dict[str, float]:
    """Return accuracy (percent) and perplexity of each source, and the seconds; of merged tasks the mean accuracy too.

    Products are made in bfloat16, which is faster on many CPUs; it moves the base's perplexity by 0.05 %.
    """
    rows_by_name = rows_of(task, split)
    start = time.monotonic()
    model = TASKS[task].model.load(work, folder)
    figures: dict[str, float] = {}
    with torch.autocast("cpu", torch.bfloat16):
        for name, rows in rows_by_name.items():
            accuracy, loss = measure(model, rows)
            figures |= {f"{name} accuracy": accuracy, f"{name} perplexity": math.exp(loss)}
    parts = [figures[f"{part} accuracy"] for part in TASKS[task].parts]
    if parts:
        figures["target accuracy"] = fmean(parts)
    return {**figures, "seconds": time.monotonic() - start}


class Scores:
    """A file of JSON lines, one a score; several processes may add to it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.file = work / "scores.jsonl"

    def all(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        return next((row for row in self.all() if all(row.get(key) == value for key, value in wanted.items())), None)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        line = (json.dumps(row) + "\n").encode()
        opened = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(opened, line)
        finally:
            os.close(opened)
        return row

    def base(self, task: str, split: str) -> dict[str, Any]:
        """Return the base's score."""
        key = {"task": task, "arm": "base", "split": split}
        return self.find(**key) or self.add({**key, **score(self.work, TASKS[task].model.base(self.work), task, split)})
