"""Several outputs of one run: each is whole under its name or not there, and a killed run makes none of them twice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, final

from ...digests import digest_of_facts
from ...launch import launched
from . import disk
from .guard import Kind, refuse_output
from .lines import LineFile, read_lines
from .workspace import JOURNAL, STEPS, Workspace, identity_of, is_interrupt, repair, told


@final
class Steps:
    """Which outputs a run that was killed has made; a context manager.

    An output is this run's if it was to be made of the same facts, and is not what had its name before. What tells so
    lies in a workspace beside the last output until all are there; after a failure it stays where an output is there
    that would be in the way of the same run.

    Args:
        last: The output that is made last.
        made_by: The command, for `status`.
    """

    def __init__(self, last: Path, *, made_by: str) -> None:
        repair(last)  # it may be whole, and an earlier one in the way
        self._workspace = Workspace(last, made_by=made_by, suffix=STEPS)
        self._file = self._workspace.folder / JOURNAL
        try:
            with told(self._file):
                self._entries = read_lines(self._file)
        except BaseException:
            self._workspace.close()
            raise

    def has_appeared(self, output: Path | None) -> bool:
        """Return whether something has an output's name that had it not when the output was to be made."""
        if output is None:
            return False
        noted, found = self._noted(output), identity_of(output)
        return noted is not None and found is not None and found != noted["before"]

    def is_made(self, output: Path, facts: Mapping[str, Any], kind: Kind, *, overwrite: bool) -> bool:
        """Return whether a run that was killed made an output; else note that it is to be made now.

        Args:
            facts: All that decides what it will be.

        Raises:
            OutputError: Something else has its name, and is not to be replaced.
        """
        digest = digest_of_facts(facts)
        noted = self._noted(output)
        if noted is not None and noted["facts"] == digest and self.has_appeared(output):
            return True
        refuse_output(output, (), kind, overwrite=overwrite)
        entry = {"output": os.path.abspath(output), "facts": digest, "before": identity_of(output), "unit": "outputs"}
        with told(self._file):
            lines = LineFile(self._file, self._entries)
            lines.append(entry)
            lines.sync()
            lines.close()
            for folder in (self._workspace.folder, self._workspace.folder.parent):
                disk.sync(folder)  # a power cut that left the output without this would leave it in the way
        self._entries.append(entry)
        return False

    def _noted(self, output: Path) -> dict[str, Any] | None:
        whole = os.path.abspath(output)
        return next((entry for entry in reversed(self._entries) if entry["output"] == whole), None)

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        made = any(self.has_appeared(Path(entry["output"])) for entry in self._entries)
        self._workspace.close(keep=error is not None and (is_interrupt(error) or made))


def steps_of(last: Path, *, made_by: str) -> AbstractContextManager[Steps | None]:
    """Return the steps of a run that makes several outputs; none where several processes make them together."""
    return Steps(last, made_by=made_by) if launched().count == 1 else nullcontext()
