"""What there is of an output: whole, unfinished, or being written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...disk_space import taken_bytes
from .lines import read_lines
from .owner import is_gone
from .workspace import (
    CHECKPOINTS,
    JOURNAL,
    MARK,
    REPLACED,
    STATE,
    STEPS,
    beside,
    is_marked,
    lock,
    read_mark,
    workspaces_of,
)


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A workspace of an output.

    Attributes:
        made_by: The command, as far as its mark says.
        is_running: Whether a process is at it.
        done: How far it is, such as `3 of 12 tensors`; empty where nothing is done that would be kept.
        nbytes: What it takes on the disk.
        holds_former: Whether the output that was to be replaced is in it, and nothing has its name.
    """

    folder: Path
    made_by: str
    is_running: bool
    done: str
    nbytes: int
    holds_former: bool

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "folder": str(self.folder)}


def unfinished(output: Path | str) -> list[Unfinished]:
    """Return the workspaces of an output, in the order of their names; none of one that is whole."""
    output = Path(output)
    folders = [*workspaces_of(beside(output)), *workspaces_of(beside(output, STEPS))]
    return [_look_at(folder, output) for folder in folders if is_marked(folder)]


def _look_at(folder: Path, output: Path) -> Unfinished:
    return Unfinished(
        folder=folder,
        made_by=str(read_mark(folder).get("made by", "run")),
        is_running=_is_running(folder),
        done=_done(folder),
        nbytes=taken_bytes(folder),
        holds_former=os.path.lexists(folder / REPLACED) and not os.path.lexists(output),
    )


def _is_running(folder: Path) -> bool:
    try:
        descriptor = lock(folder)
    except BlockingIOError:
        return True
    if descriptor is None:
        return (folder / MARK).exists() and not is_gone(read_mark(folder))
    os.close(descriptor)
    return False


def _done(folder: Path) -> str:
    journal, state = read_lines(folder / JOURNAL), read_lines(folder / STATE)
    if len(journal) > 1:
        total = f" of {journal[0]['of']}" if "of" in journal[0] else ""
        return f"{len(journal) - 1}{total} {journal[0].get('unit', 'steps')}"
    if state:
        return f"{len(state[0].get('passed', ()))} blocks"
    steps = [path.name.rpartition("-")[2] for path in (folder / CHECKPOINTS).glob("checkpoint-*")]
    return f"{max(map(int, filter(str.isdecimal, steps)))} steps" if any(map(str.isdecimal, steps)) else ""
