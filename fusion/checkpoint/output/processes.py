"""Several processes that make one output, on machines that share its file system: they meet in its workspace.

    out.partial/processes/join-1       process 1 is there, with a word that no other has
    out.partial/processes/members      the words of all, by the first process: it means those that are there now
    out.partial/processes/alive-1      a number that changes as long as the process lives
    out.partial/processes/NAME.0-1     what it tells all others, the first time that all do under a name
    out.partial/processes/failed-1     what went wrong there
    out.partial/processes/left-1       it needs the folder no longer

Nothing is locked, no port opened and no clock compared: a file that appears is all that is waited for.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, final

from ...errors import LostProcessError, OutputError, SculptError
from ...launch import STARTED, Launch, launched
from ...progress import NOTE
from .owner import is_gone, this_process
from .workspace import PROCESSES, Workspace, beside, is_interrupt, is_marked, told, workspaces_of

logger = logging.getLogger(__name__)

MEMBERS = "members"
JOIN_SECONDS = 900  # until all processes have started
TOLD_SECONDS = 20  # after which it is said that they are waited for
SAME_COMMAND = "all must run the same command with the same output, on a shared file system"
SILENT_SECONDS = 180  # after which a process on another machine is taken for dead
BEAT_SECONDS = 10
CHECK_SECONDS = 1
_GONE = "the first process has ended, and `{}` with it"
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.25


@final
class Processes:
    """The processes of one command; one alone needs nothing of all this.

    Args:
        within: That have met for an output of which this one's is a part: one that is lost there will not come here.

    Attributes:
        rank: This one's place, from 0.
        count: Their number.
        workspace: Of the first, while they have met: it gives the output its name.
        closing: Called when this one leaves, before it waits for the others: what they may be waiting at is closed.
    """

    def __init__(self, launch: Launch | None = None, *, within: Processes | None = None) -> None:
        self.launch = launch or launched()
        self.rank, self.count = self.launch.rank, self.launch.count
        self.folder: Path | None = None
        self.workspace: Workspace | None = None
        self._within = within
        self._place: Path | None = None
        self._times: Counter[str] = Counter()
        self.closing: list[Callable[[], object]] = []
        self._members: dict[int, dict[str, Any]] = {}
        self._beats: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()
        self._checked = 0.0

    @property
    def is_first(self) -> bool:
        """Whether this one owns the workspace and gives the output its name."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    @property
    def have_met(self) -> bool:
        """Whether they can tell each other something; of one there is nothing to wait for."""
        return not self.are_several or self.folder is not None

    @contextmanager
    def meet(self, output: Path, *, made_by: str) -> Iterator[Path]:
        """Give the folder in which all put an output together; within a meeting it is the folder of that.

        One process alone has its workspace so, too.

        Raises:
            OutputError: Another run has it, or not all have come.
        """
        if self._place is not None:
            yield self._place
            return
        with ExitStack() as stack:
            if self.is_first:
                self.workspace = stack.enter_context(Workspace(output, made_by=made_by))
            stack.push(lambda _kind, error, _trace: self._part(error))
            if self.workspace is None:
                self._place = self.follow(beside(output))
            else:
                self._place = self.workspace.folder
                with told(self._place):
                    self.lead(self._place)
            yield self._place

    def publish(self, fill: Callable[[Path], object], may_replace: Callable[[Path], bool] | None = None) -> None:
        """Have the first fill what becomes the output and give it the name; the others wait until it has it.

        Args:
            may_replace: Says of what has the name by then whether it may be replaced; without, nothing is.
        """
        if self.workspace is None:
            self.wait_for_first("done")
            return
        with told(self.workspace.folder):
            fill(self.workspace.payload)
        self.workspace.publish(may_replace)
        self.say("done")

    def _part(self, error: BaseException | None) -> None:
        self.leave(error, kept=is_interrupt(error))
        self._place = self.workspace = None

    def lead(self, workspace: Path) -> None:
        """Wait, as the first, until all others have come to a workspace.

        Raises:
            OutputError: Some have not come.
        """
        if not self.are_several:
            return
        place = workspace / PROCESSES
        with suppress(FileNotFoundError):  # of a run that was killed: away at once, as others may be coming to it
            former = place.rename(place.with_name(f"{PROCESSES}-{secrets.token_hex(4)}"))
            shutil.rmtree(former, ignore_errors=True)
        place.mkdir()
        self._begin(place)
        came: dict[int, Any] = {}

        def missing() -> str:
            return ", ".join(str(rank) for rank in range(1, self.count) if rank not in came)

        for _ in self._until(JOIN_SECONDS, lambda: f"processes {missing()}, to join `{workspace}`"):
            self._check_those_around()
            came = {rank: found for rank in range(1, self.count) if (found := _read(place / f"join-{rank}"))}
            for rank, found in [*came.items()]:
                if is_gone(found):  # of a run that was killed just now
                    (place / f"join-{rank}").unlink(missing_ok=True)
                    del came[rank]
            if len(came) == self.count - 1:
                break
        else:
            raise OutputError(
                f"of {self.count} processes these did not join `{workspace}`: {missing()}",
                hint=SAME_COMMAND,
                options=["output"],
            )
        self._members = {0: this_process(), **came}
        _write(place / MEMBERS, {str(rank): member for rank, member in self._members.items()})

    def follow(self, workspace: Path) -> Path:
        """Come to the workspace of the first, and return it: the one that is given, or one of that run alone.

        Raises:
            OutputError: The first has not come.
        """
        if workspace.parent.is_dir() and not os.access(workspace.parent, os.W_OK):  # nor would its word arrive
            raise OutputError(f"cannot write `{workspace}`: process {self.rank} may not write into its folder")
        own = {**this_process(), "word": secrets.token_hex(8)}
        for _ in self._until(JOIN_SECONDS, lambda: f"the first of {self.count} processes, to begin `{workspace}`"):
            self._check_those_around()
            for folder in filter(is_marked, workspaces_of(workspace)):
                place, file = folder / PROCESSES, folder / PROCESSES / f"join-{self.rank}"
                members = _read(place / MEMBERS)
                if members.get(str(self.rank)) == own:
                    if len(members) != self.count:
                        raise OutputError(
                            f"process {self.rank} is one of {self.count}, and the first of {len(members)}"
                        )
                    self._members = {int(rank): member for rank, member in members.items()}
                    self._begin(place)
                    return folder
                if place.is_dir() and _read(file) != own:
                    with suppress(OSError):  # the folder has just been removed
                        _write(file, own)
        raise OutputError(
            f"the first of {self.count} processes did not join `{workspace}`",
            hint=SAME_COMMAND,
            options=["output"],
        )

    def _check_those_around(self) -> None:
        """Raise where a process that is waited for has ended, so that it will not come."""
        if self._within is not None:
            self._within.check()
        for rank, process in enumerate(STARTED.get(), 1):
            if process.poll():
                raise OutputError(f"process {rank} of {self.count} failed before it joined the others")

    def _begin(self, place: Path) -> None:
        self.folder = place
        threading.Thread(target=self._beat, args=(place / f"alive-{self.rank}",), daemon=True).start()

    def _beat(self, file: Path) -> None:
        number = 0
        while not self._over.wait(BEAT_SECONDS if number else 0):
            number += 1
            with suppress(OSError):
                _write(file, number)

    def gather(self, name: str, value: Any = None) -> list[Any]:
        """Return what each process gave under a name, in their order, once all have; each time all are waited for.

        Args:
            value: Plain, as JSON has it.

        Raises:
            OutputError: Another process failed.
        """
        if not self.are_several:
            return [value]
        assert self.folder is not None
        times = self._times[name]
        self._times[name] += 1
        name = f"{name}.{times}"
        self.say(name, value)
        found: dict[int, Any] = {}
        for _ in self._until(None):
            names = _names(self.folder)
            for rank in range(self.count):
                if rank not in found and f"{name}-{rank}" in names:
                    found[rank] = _read(self.folder / f"{name}-{rank}")
            if len(found) == self.count:
                return [found[rank] for rank in range(self.count)]
            self.check()
        raise AssertionError

    def wait_for_first(self, name: str) -> Any:
        """Return what the first process says under a name, once it does.

        Raises:
            OutputError: It failed.
        """
        assert self.folder is not None
        for _ in self._until(None):
            if f"{name}-0" in _names(self.folder):
                return _read(self.folder / f"{name}-0")
            self.check()
        raise AssertionError

    def say(self, name: str, value: Any = None) -> None:
        """Tell others, who wait for it or do not.

        Raises:
            LostProcessError: The first process has ended, and its folder with it.
        """
        if self.are_several and self.folder is not None:
            try:
                _write(self.folder / f"{name}-{self.rank}", value)
            except FileNotFoundError:
                raise LostProcessError(_GONE.format(self.folder)) from None

    def check(self, *, now: bool = False) -> None:
        """Raise where another process failed or ended.

        Args:
            now: Ask even where it was asked within the last second.

        Raises:
            OutputError: Another failed.
            LostProcessError: Another was killed or interrupted: what is done stays, and the same command goes on.
        """
        time_now = time.monotonic()
        if not self.are_several or self.folder is None or not (now or time_now >= self._checked + CHECK_SECONDS):
            return
        self._checked = time_now
        names = _names(self.folder)
        for rank, member in self._members.items():
            if rank == self.rank:
                continue
            if f"failed-{rank}" in names:
                told = _read(self.folder / f"failed-{rank}") or {}
                if told.get("kept"):
                    raise self._lost(rank)
                raise OutputError(f"process {rank} of {self.count} failed: {told.get('error')}", hint=told.get("hint"))
            if f"left-{rank}" not in names and self._is_gone(rank, member, time_now):
                raise self._lost(rank)

    def _lost(self, rank: int) -> LostProcessError:
        return LostProcessError(
            f"process {rank} of {self.count} ended before its work was done",
            hint="run the same command again, with any number of processes, to go on",
        )

    def _is_gone(self, rank: int, member: dict[str, Any], now: float) -> bool:
        if is_gone(member):
            return True
        assert self.folder is not None
        beat = str(_read(self.folder / f"alive-{rank}"))
        known = self._beats.get(rank)
        if known is None or known[0] != beat:
            self._beats[rank] = beat, now
            return False
        return now - known[1] > SILENT_SECONDS

    def leave(self, error: BaseException | None, *, kept: bool) -> None:
        """Tell the others how this process ended; the first returns once all have left or are gone.

        Args:
            kept: Whether the workspace stays, for the same command to go on.
        """
        if not self.are_several or self.folder is None:
            return
        folder = self.folder
        with suppress(OSError):
            if error is not None and not (folder / f"failed-{self.rank}").exists():
                hint = error.hint if isinstance(error, SculptError) else None
                _write(folder / f"failed-{self.rank}", {"error": str(error), "hint": hint, "kept": kept})
            _write(folder / f"left-{self.rank}", None)
            for close in self.closing:
                close()
            if self.is_first and self._members:
                self._wait_until_left(folder)
        self._over.set()
        self.folder = None

    def _wait_until_left(self, folder: Path) -> None:
        for _ in self._until(SILENT_SECONDS):
            names, now = _names(folder), time.monotonic()
            if all(f"left-{rank}" in names or self._is_gone(rank, self._members[rank], now) for rank in self._members):
                return

    @staticmethod
    def _until(seconds: float | None, whom: Callable[[], str] | None = None) -> Iterator[None]:
        """Yield again and again, with pauses that grow, until so many seconds have passed.

        Args:
            whom: Says who or what is waited for; it is told where that takes long.
        """
        start, pause = time.monotonic(), FIRST_PAUSE
        while seconds is None or time.monotonic() < start + seconds:
            yield
            if whom is not None and time.monotonic() >= start + TOLD_SECONDS:
                logger.log(NOTE, "waiting for %s; %s", whom(), SAME_COMMAND)
                whom = None
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.5 * pause)


def _names(folder: Path) -> set[str]:
    """Return the names in a folder; a listing is fresh where a question for one file may be answered from a cache."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        raise LostProcessError(_GONE.format(folder)) from None


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(file: Path, value: Any) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_text(json.dumps(value), encoding="utf-8")
    beside.replace(file)
