"""The points of a sweep that is under way, in a journal: a killed sweep scores none of them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from ..fusion.arithmetic.two_sided import Protection
from ..fusion.checkpoint.output.lines import Lines, read_lines
from ..fusion.checkpoint.output.workspace import JOURNAL, Workspace, told
from ..fusion.methods import Method
from .evaluate import SuiteScores, TaskScore
from .live_fuse import BlockStrengths, Distance
from .points import Point
from .suite import Harness, Suite


@final
class KnownPoints:
    """What has been scored in this sweep, and in a run of it that was killed; a context manager.

    Args:
        workspace: Where the journal lies; points of another sweep are removed.
        facts: All that decides what a point scores.
    """

    def __init__(self, workspace: Workspace, facts: Mapping[str, Any]) -> None:
        file = workspace.folder / JOURNAL
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        first = {"fingerprint": digest, "unit": "points"}
        with told(file):
            entries = read_lines(file)
            if entries[:1] != [first]:
                workspace.empty()
                entries = []
            workspace.begun = True
            self._lines = Lines(file, entries)
            if not entries:
                self._lines.append(first)
        self._known = {entry["key"]: entry for entry in entries[1:]}
        self._file = file

    def __enter__(self) -> KnownPoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def find(
        self, method: Method, blocks: BlockStrengths | None, protection: Protection | None, seed: int
    ) -> tuple[Distance, SuiteScores] | None:
        """Return what a fused model scored, and how far it is from its base; None where it was not scored."""
        entry = self._known.get(_key(method, blocks, protection, seed))
        if entry is None:
            return None
        scores = SuiteScores(suite=entry["suite"], tasks=tuple(TaskScore(**task) for task in entry["tasks"]))
        return Distance(**entry["distance"]), scores

    def add(self, point: Point) -> None:
        """Note a point."""
        entry = {
            "key": _key(point.method, point.blocks, point.protection, point.seed),
            "suite": point.scores.suite,
            "tasks": [asdict(task) for task in point.scores.tasks],
            "distance": asdict(point.distance),
        }
        with told(self._file):
            self._lines.append(entry)


def _key(method: Method, blocks: BlockStrengths | None, protection: Protection | None, seed: int) -> str:
    facts = [seed, method.name, method.options(), blocks and dict(blocks), protection and asdict(protection)]
    return json.dumps(facts, sort_keys=True, default=str)


def files_of(suite: Suite) -> list[Path]:
    """Return the files of a suite's tasks that sculpt reads itself."""
    return [suite.folder / task.file for _, _, task in suite.tasks() if not isinstance(task, Harness)]
