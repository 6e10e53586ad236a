"""An unfinished training: its plan, and the checkpoints that a killed run goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..fusion.checkpoint.identity import digest_of_data
from ..fusion.checkpoint.output.disk import sync, sync_tree
from ..fusion.checkpoint.output.lines import line_of, read_lines
from ..fusion.checkpoint.output.workspace import CHECKPOINTS, MARK, told
from ..fusion.errors import OutputError, Way

PLAN = "plan"  # what is being trained
WHOLE = "sculpt-whole"  # in a checkpoint: the digests of its files, once all of it was written


def settle(folder: Path, plan: dict[str, Any], *, resume: bool, writes: bool) -> Path | None:
    """Return the last whole checkpoint of a run with the same plan; else make the workspace ready for a new one.

    Args:
        resume: False starts again.
        writes: Whether this is the process that writes into the workspace.

    Raises:
        OutputError: There are checkpoints of a run with other settings.
    """
    file, checkpoints = folder / PLAN, folder / CHECKPOINTS
    plan = json.loads(json.dumps(plan))  # as it reads back
    if resume:
        with told(file):
            before = next(iter(read_lines(file)), None)
        whole = last_whole(checkpoints)
        if whole is not None and before == plan:
            return whole
        if whole is not None and before is not None:
            raise OutputError(
                f"`{folder}` is from a run with other settings: {_difference(before, plan)}",
                ways=[
                    Way(option="no_resume", effect="starts again"),
                    Way(option="output", effect="names another output"),
                ],
            )
    if writes:
        with told(folder):
            for path in folder.iterdir():
                if path.name != MARK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            checkpoints.mkdir()
            file.write_bytes(line_of(plan))
            sync_tree(file)
            sync(folder)
    return None


def mark_whole(checkpoint: Path) -> None:
    """Note the digests of a checkpoint's files, once they are on the disk."""
    with told(checkpoint):
        sync_tree(checkpoint)
        (checkpoint / WHOLE).write_bytes(line_of(_digests(checkpoint)))
        sync(checkpoint / WHOLE)
        sync(checkpoint)
        sync(checkpoint.parent)


def last_whole(checkpoints: Path) -> Path | None:
    """Return the last checkpoint whose files are as they were written."""
    for checkpoint in sorted(checkpoints.glob("checkpoint-*"), key=_step, reverse=True):
        noted = next(iter(read_lines(checkpoint / WHOLE)), None) if checkpoint.is_dir() else None
        if noted is not None and noted == _digests(checkpoint):
            return checkpoint
    return None


def is_last(checkpoint: Path) -> bool:
    """Return whether a whole checkpoint is that of the last step, so that only the output is missing."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"]


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _digests(checkpoint: Path) -> dict[str, str]:
    return {
        str(file.relative_to(checkpoint)): digest_of_data(file)
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != WHOLE
    }


def _difference(before: Any, after: dict[str, Any]) -> str:
    for group in ("method", "schedule"):
        for key, value in after[group].items():
            if (then := before.get(group, {}).get(key)) != value:
                return f"`{key}` was {then}, and is {value}"
    return "the base or the data changed"
