"""The folder of an unfinished training: its plan, and the checkpoints that a killed run goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import xxhash

from ..fusion.errors import OutputError, Way, os_error

PLAN = "sculpt-training.json"  # what is being trained
WHOLE = "sculpt-whole"  # in a checkpoint: all of it was written


def digest_of_file(path: Path) -> str:
    """Return a digest of a data file, or the name of a data folder."""
    if path.is_dir():
        return str(path.resolve())
    with path.open("rb") as stream:
        digest = xxhash.xxh3_128()
        while block := stream.read(1 << 20):
            digest.update(block)
    return f"xxh3-128:{digest.hexdigest()}"


def settle(folder: Path, plan: dict[str, Any], *, resume: bool, writes: bool) -> Path | None:
    """Make the folder of checkpoints, or return the last whole one of a run with the same plan.

    Args:
        resume: False starts again.
        writes: Whether this is the process that makes the folder.

    Raises:
        OutputError: The folder is of another run, or cannot be made.
    """
    file = folder / PLAN
    plan = json.loads(json.dumps(plan))  # as it reads back
    if resume and file.is_file():
        before = _read_plan(file)
        if before != plan:
            raise OutputError(
                f"`{folder}` is of a run with other settings: {_difference(before, plan)}",
                ways=[
                    Way(option="no_resume", effect="starts again"),
                    Way(option="output", effect="names another output"),
                ],
            )
        whole = [path for path in folder.glob("checkpoint-*") if (path / WHOLE).is_file()]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    if not writes:
        return None
    if folder.exists() and not file.is_file():
        raise OutputError(f"`{folder}` exists and is not of a training", hint="`-o` names another output")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        file.write_text(json.dumps(plan, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise os_error(error, folder) from error
    return None


def _read_plan(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # cut off while it was written: of no run that could be resumed


def _difference(before: Any, after: dict[str, Any]) -> str:
    for group in ("method", "schedule"):
        for key, value in after[group].items():
            if (then := before.get(group, {}).get(key)) != value:
                return f"`{key}` was {then}, and is {value}"
    return "the base or the data changed"
