"""What a sweep that is under way has done, in a journal: a killed one measures and scores nothing again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import numpy as np

from ..fusion.arithmetic.curvature import Curvature, Curvatures
from ..fusion.arithmetic.two_sided import Protection
from ..fusion.checkpoint.output.checked import digest_of
from ..fusion.checkpoint.output.disk import sync
from ..fusion.checkpoint.output.processes import Processes
from ..fusion.checkpoint.output.shared_journal import SharedJournal
from ..fusion.checkpoint.output.workspace import told
from ..fusion.digests import digest_of_facts
from ..fusion.methods import Method
from .evaluate import SuiteScores, TaskScore
from .live_fuse import BlockStrengths, Distance
from .points import Point
from .suite import Harness, Suite

CURVATURE = "curvature.npz"
Held = Mapping[str, Curvatures] | None


@final
class KnownPoints:
    """What has been scored in this sweep, and in a run of it that was killed; a context manager.

    Args:
        processes: That score the points, and have met; points of another sweep are removed from where.
        folder: Where they have met.
        facts: All that decides what is measured, and what a point scores.
    """

    def __init__(self, processes: Processes, folder: Path, facts: Mapping[str, Any]) -> None:
        digest = digest_of_facts(facts)
        self._processes = processes
        self._lines = SharedJournal(processes, folder, {"fingerprint": digest, "unit": "points"})
        entries = self._lines.entries
        self._known = {entry["key"]: entry for entry in entries if "key" in entry}
        self._measured = next((entry for entry in entries if "provenance" in entry), None)
        self._new: list[dict[str, Any]] = []
        self._store = folder / CURVATURE

    def __enter__(self) -> KnownPoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def curvature(
        self, measure: Callable[[], tuple[Held, dict[str, Any] | None]]
    ) -> tuple[Held, dict[str, Any] | None]:
        """Return what was measured and where it came from: of the run that was killed, or what `measure` gives."""
        noted = self._measured
        if noted is not None and _reads_back(self._store, noted["digest"]):
            return _unpacked(self._store, noted["curvature"]), noted["provenance"]
        held, provenance = measure()
        if not self._processes.is_first:
            return held, provenance
        with told(self._store):
            described, arrays = _packed(held)
            with self._store.open("wb") as stream:
                np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
            sync(self._store)
            digest = digest_of(np.fromfile(self._store, np.uint8))
            self._lines.append({"curvature": described, "provenance": provenance, "digest": digest})
        return held, provenance

    def find(
        self, method: Method, blocks: BlockStrengths | None, protection: Protection | None, seed: int
    ) -> tuple[Distance, SuiteScores, tuple[float, float]] | None:
        """Return how far a fused model is from its base, what it scored, and the seconds that setting and scoring took.

        None where it was not scored.
        """
        entry = self._known.get(_key(method, blocks, protection, seed))
        if entry is None:
            return None
        scores = SuiteScores(suite=entry["suite"], tasks=tuple(TaskScore(**task) for task in entry["tasks"]))
        return Distance(**entry["distance"]), scores, tuple(entry["seconds"])

    def add(self, point: Point) -> None:
        """Note a point."""
        entry = {
            "key": _key(point.method, point.blocks, point.protection, point.seed),
            "suite": point.scores.suite,
            "tasks": [task.as_json() for task in point.scores.tasks],
            "distance": asdict(point.distance),
            "seconds": [point.fuse_seconds, point.score_seconds],
        }
        with told(self._store):
            self._lines.append(entry)
        self._new.append(entry)

    @property
    def processes(self) -> Processes:
        """Those that score the points."""
        return self._processes

    def exchange(self) -> None:
        """Learn what the other processes have scored since all last told each other."""
        for told_by_one in self._processes.gather("points", self._new):
            self._known |= {entry["key"]: entry for entry in told_by_one}
        self._new = []


def _reads_back(file: Path, digest: str) -> bool:
    try:
        return digest_of(np.memmap(file, np.uint8, "r")) == digest
    except (OSError, ValueError):
        return False


def _packed(held: Held) -> tuple[Any, dict[str, np.ndarray]]:
    """Return plain values that say what each tensor has, and the arrays, each once."""
    arrays: dict[str, np.ndarray] = {}
    numbers: dict[int, str] = {}

    def number(array: np.ndarray) -> str:
        if id(array) not in numbers:
            numbers[id(array)] = str(len(arrays))
            arrays[numbers[id(array)]] = array
        return numbers[id(array)]

    described = {
        name: [
            None
            if one is None
            else {
                "terms": [number(term) for term in one.terms],
                "num_tokens": one.num_tokens,
                "gram": None if one.gram is None else number(one.gram),
                "is_measured": one.is_measured,
            }
            for one in several
        ]
        for name, several in (held or {}).items()
    }
    return None if held is None else described, arrays


def _unpacked(file: Path, described: Any) -> Held:
    if described is None:
        return None
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return {
        name: tuple(
            None
            if one is None
            else Curvature(
                terms=tuple(arrays[term] for term in one["terms"]),
                num_tokens=one["num_tokens"],
                gram=None if one["gram"] is None else arrays[one["gram"]],
                is_measured=one["is_measured"],
            )
            for one in several
        )
        for name, several in described.items()
    }


def _key(method: Method, blocks: BlockStrengths | None, protection: Protection | None, seed: int) -> str:
    facts = [seed, method.name, method.options(), blocks and dict(blocks), protection and asdict(protection)]
    return json.dumps(facts, sort_keys=True, default=str)


def files_of(suite: Suite) -> list[Path]:
    """Return the files of a suite's tasks that sculpt reads itself."""
    return [suite.folder / task.file for _, _, task in suite.tasks() if not isinstance(task, Harness)]
