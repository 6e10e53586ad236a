"""A journal of what was done of an output: by a run that was killed, and by each process of the one that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from ...errors import OutputError
from .lines import LineFile, read_lines
from .processes import Processes
from .workspace import JOURNAL, Workspace, told

OTHERS = "journal-*.jsonl"  # of processes but the first


@final
class SharedJournal:
    """Each process's own file of lines, beside those of the others in their workspace.

    Args:
        first: Tells this run from any other; what another run left in the workspace is removed.

    Attributes:
        entries: What the run that was killed noted, by all of its processes.

    Raises:
        OutputError: Another process has another run.
    """

    def __init__(self, processes: Processes, folder: Path, first: Mapping[str, Any]) -> None:
        self._processes, self._folder, self._first = processes, folder, dict(first)
        file = self._file(0)
        with told(file):
            known: list[dict[str, Any]] = []
            if processes.workspace is not None:
                known = self._taken_over(processes.workspace)
            if processes.gather("begun", self._first)[0] != self._first:
                raise OutputError(
                    f"process {processes.rank} has another output to make than the first",
                    hint="all must run the same command, with the same options, inputs and version of sculpt",
                )
            if processes.workspace is None:
                known = read_lines(file)
                self._lines = LineFile(self._file(processes.rank), [])
                self._lines.append(self._first)
        self.entries = known[1:]

    def _taken_over(self, workspace: Workspace) -> list[dict[str, Any]]:
        """Return what was noted before, now in the journal of this process, the first."""
        file = self._file(0)
        entries = read_lines(file)
        if entries[:1] != [self._first]:  # another run's files, or none whose journal can be believed
            workspace.empty()
            entries = []
        workspace.begun = True
        self._lines = LineFile(file, entries)
        if not entries:
            self._lines.append(self._first)
            entries = [self._first]
        for other in sorted(self._folder.glob(OTHERS)):
            own = read_lines(other)
            for entry in own[1:] if own[:1] == [self._first] else []:
                self._lines.append(entry)
                entries.append(entry)
            other.unlink()
        return entries

    def _file(self, rank: int) -> Path:
        return self._folder / (OTHERS.replace("*", str(rank)) if rank else JOURNAL)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Note something."""
        self._lines.append(entry)

    def of_all(self) -> list[dict[str, Any]]:
        """Return what was noted so far, by all processes."""
        journals = [self._file(rank) for rank in range(self._processes.count)]
        return [entry for journal in journals for entry in read_lines(journal)[1:]]

    def sync(self) -> None:
        """Bring all entries of this process to the disk."""
        self._lines.sync()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
