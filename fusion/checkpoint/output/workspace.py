"""The folder beside an output in which one run at a time puts it together, and the step that gives it its name.

    out.partial/sculpt-unfinished.json   whose it is; a folder without is never touched
    out.partial/output…                  what becomes `out`, a file or a folder
    out.partial/committing               which file or folder is about to become `out`
    out.partial/replaced                 the former `out`, where names cannot be swapped at once
    out.partial/journal.jsonl            of a fuse or a sweep: what is done, a line each
    out.partial/state.json               of a calibration: the last unit that is done, with digests of files beside it
    out.partial/checkpoints              of a training
    out.partial/processes                where several processes that make one output meet
    out.steps.partial/journal.jsonl      of a run with several outputs: which it was to make, beside the last of them

What is there when a run is killed is put right by the next one: if `out` is what `committing` says, nothing is left to
do but to remove the folder; if there is no `out`, the former one gets its name back.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, final

from ...errors import LostProcessError, OutputError, SculptError, os_error
from ...launch import launched
from . import disk
from .owner import is_gone, this_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

MARK = "sculpt-unfinished.json"
NEW_MARK = f"{MARK}.tmp"
COMMITTING = "committing"
REPLACED = "replaced"
SUFFIX = ".partial"
STEPS = f".steps{SUFFIX}"  # beside the last of several outputs
ATTEST = f".attest{SUFFIX}"  # beside an output that statements are made of
JOURNAL = "journal.jsonl"
STATE = "state.json"
CHECKPOINTS = "checkpoints"
PROCESSES = "processes"
PUBLISHED: ContextVar[list[Path] | None] = ContextVar("PUBLISHED", default=None)  # gets what is named in a block
MOST_TRIES = 64  # to lock a folder that others make and remove


class _NoLocksError(Exception):
    """The file system has no locks."""


def beside(output: Path, suffix: str = SUFFIX) -> Path:
    """Return where an output is put together."""
    whole = Path(os.path.abspath(output))
    return whole.with_name(whole.name + suffix)


def payload_of(folder: Path, output: Path) -> Path:
    """Return what is to become an output, in its workspace."""
    return folder / f"output{output.suffix}"


def lock(folder: Path) -> int | None:
    """Return a descriptor of a folder that holds the system's lock on it until it is closed; None without such locks.

    The lock ends with the process, however that ends, and a rename takes it along.

    Raises:
        BlockingIOError: Another process holds it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_marked(folder: Path) -> bool:
    """Return whether a folder is one of ours, or holds nothing that could be lost.

    It is listed before it is asked for the mark: another process may mark it just now, and whatever else lies in it
    came after the mark.
    """
    if folder.is_symlink() or not folder.is_dir():
        return False
    return {path.name for path in folder.iterdir()} <= {NEW_MARK} or (folder / MARK).is_file()


def workspaces_of(shared: Path) -> list[Path]:
    """Return the workspace that runs share, if it is there, and those of runs that had no locks."""
    own = sorted(shared.parent.glob(f"{_escaped(shared.name)}.*"))
    return [folder for folder in (shared, *own) if folder.is_dir()]


def refuse_foreign(folder: Path) -> None:
    """Raise OutputError where what has the name of a workspace is not one of ours."""
    if os.path.lexists(folder) and not is_marked(folder):
        raise OutputError(
            f"`{folder}` is in the way, and sculpt did not write it", hint="rename it, or choose another output"
        )


@final
class Workspace:
    """A marked folder that other runs are kept out of; use as a context manager.

    When the block ends, the folder goes, but for an interrupt, or an error that is not of sculpt's own and where
    `resumable` was set: the same run then goes on from it. A run that is refused before it has begun leaves what it
    found. Where the file system has no locks, each run has a folder of its own, and takes over that of a run on this
    machine that has ended.

    Args:
        made_by: The command, for `status`; None only puts right what a killed run left.

    Attributes:
        folder: For journals, and whatever a run that goes on needs.
        payload: In it, what is to become the output.
        resumable: Set where what is in the folder is worth being kept after an error of the machine.
        begun: Set once what is in the folder is this run's.

    Raises:
        OutputError: Another run has it, it is not ours, or it cannot be made.
    """

    def __init__(self, output: Path, *, made_by: str | None, suffix: str = SUFFIX) -> None:
        self.output = Path(os.path.abspath(output))
        self.resumable = False
        self.begun = False
        self.published = False
        self._made_by = made_by
        self._made: list[Path] = []
        self._descriptor: int | None = None
        self.folder = beside(output, suffix)
        with told(self.folder):
            try:
                self._descriptor = self._claim()
            except _NoLocksError:
                self._take_own_folder()
            try:
                self._mark()
                self.payload = payload_of(self.folder, self.output)
                self._repair()
            except BaseException:
                self.close(keep=True)
                raise

    def _claim(self) -> int:
        for _ in range(MOST_TRIES):
            refuse_foreign(self.folder)
            self._make(self.folder)
            try:
                descriptor = lock(self.folder)
            except FileNotFoundError:  # the run that had it has just removed it
                continue
            except BlockingIOError:
                raise OutputError(
                    f"another run is writing `{self.folder}`",
                    hint="wait for it, or name another `output`",
                    options=["output"],
                ) from None
            if descriptor is None:
                raise _NoLocksError
            if _lies_at(descriptor, self.folder):
                return descriptor
            os.close(descriptor)  # the run that had it has just removed it
        raise OutputError(f"other runs keep making and removing `{self.folder}`")

    def _make(self, folder: Path) -> None:
        missing = [folder]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir()
                self._made.append(path)
                if path != folder:  # a power cut takes what lies in a folder whose own name is lost
                    disk.sync(path.parent)

    def _take_own_folder(self) -> None:
        """Take a folder that is this run's alone: that of a run here that has ended, or a new one."""
        shared = self.folder
        with suppress(OSError):
            shared.rmdir()  # it was made to be locked
        self.folder = shared.with_name(f"{shared.name}.{secrets.token_hex(4)}")
        for other in workspaces_of(shared):
            if is_marked(other) and is_gone(read_mark(other)):
                with suppress(OSError):  # of several that want it one gets it
                    other.rename(self.folder)
                    self._mark()
                    return
        self._make(self.folder)

    def _mark(self) -> None:
        if self._made_by is None:
            return
        content = {"output": self.output.name, "made by": self._made_by, **this_process()}
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        # On the disk, lest a power cut leaves journals in a folder that is nobody's.
        disk.replace_whole(self.folder / MARK, text.encode(), beside=self.folder / NEW_MARK)

    def _repair(self) -> None:
        """Put right what a run left that was killed while it gave the output its name."""
        committing, former = self.folder / COMMITTING, self.folder / REPLACED
        if committing.exists() and identity_of(self.output) == _read_identity(committing):
            self.empty()
            return
        if os.path.lexists(former):
            if os.path.lexists(self.output):
                raise OutputError(
                    f"`{former}` is the earlier `{self.output}` of a run that was killed, and there is a new one now",
                    hint="move one of them away",
                )
            disk.rename_new(former, self.output)
        committing.unlink(missing_ok=True)

    def empty(self) -> None:
        """Remove what is in the folder, but for its mark and its processes; what comes there now is this run's."""
        self.begun = True
        with told(self.folder):
            self._empty({MARK, PROCESSES})

    def _empty(self, spared: Collection[str]) -> None:
        # Last what says that the output is in its place: without it, the rest would look like a run to go on from.
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == COMMITTING):
            if path.name not in spared:
                _remove(path)

    def publish(self, may_replace: Callable[[Path], bool] | None = None) -> None:
        """Give the payload the output's name, once all of it is on the disk.

        Args:
            may_replace: Says of what has the name by then whether it may be replaced; without, nothing is.

        Raises:
            OutputError: Something has the name that is not to be replaced, or the disk fails; the name then stays
                with what had it.
        """
        with told(self.output):
            disk.sync_tree(self.payload)
            committing = self.folder / COMMITTING
            committing.write_text(json.dumps(identity_of(self.payload)), encoding="utf-8")
            for path in (committing, self.folder, self.folder.parent):
                disk.sync(path)
            try:
                self._rename(replace=may_replace is not None and may_replace(self.output))
            except FileExistsError:
                raise OutputError(f"`{self.output}` appeared during the run") from None
        self.published = True
        if (published := PUBLISHED.get()) is not None:
            published.append(self.output)
        try:
            disk.sync(self.output.parent)
            disk.sync(self.folder)
        except OSError as error:
            logger.warning("`%s` is complete, but a power cut may undo it: %s", self.output, error.strerror or error)

    def _rename(self, *, replace: bool) -> None:
        if not replace or not os.path.lexists(self.output):
            disk.rename_new(self.payload, self.output)
        elif not self.payload.is_dir():
            self.payload.replace(self.output)
        elif not disk.swap(self.payload, self.output):
            former = self.folder / REPLACED
            self.output.rename(former)
            try:
                disk.rename_new(self.payload, self.output)
            except OSError:
                disk.rename_new(former, self.output)
                raise

    def close(self, *, keep: bool = False) -> None:
        """Remove the folder, unless there is something to keep in it, and let others have it."""
        try:
            if not keep or self.published or not self._holds_something():
                self._vanish()
        except OSError as error:
            if self.published:
                logger.warning("`%s` is left over: %s", self.folder, error.strerror or error)
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _holds_something(self) -> bool:
        return any(path.name not in (MARK, NEW_MARK, PROCESSES) for path in self.folder.iterdir())

    def _vanish(self) -> None:
        if os.path.lexists(self.folder / REPLACED) and not os.path.lexists(self.output):
            return  # the former output could not be put back: the next run does it
        self._empty({MARK})
        (self.folder / MARK).unlink(missing_ok=True)  # the last to go: without it the rest would be nobody's
        self.folder.rmdir()
        if not self.published:
            for path in reversed(self._made):
                with suppress(OSError):  # the folder itself is gone, another may hold something by now
                    path.rmdir()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        resumable = self.resumable and is_of_the_machine(error)
        self.close(keep=error is not None and (is_interrupt(error) or resumable or not self.begun))


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether a run was stopped from outside, so that the same command is to go on from what it left."""
    return error is not None and (isinstance(error, LostProcessError) or not isinstance(error, Exception))


def is_of_the_machine(error: BaseException | None) -> bool:
    """Return whether an error is one that the same run may not meet again, such as a lack of memory on a device."""
    return error is not None and not isinstance(error, (SculptError, OSError))


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Tell errors of the file system as failures to write `path`."""
    try:
        yield
    except OSError as error:
        raise os_error(error, path) from error


def identity_of(path: Path) -> list[int] | None:
    """Return what tells a file or folder from all others on its disk; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return [found.st_dev, found.st_ino]


def _read_identity(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # cut off while it was written: nothing has been renamed


def read_mark(folder: Path) -> dict[str, Any]:
    """Return what a workspace says of the run that has it; nothing where that is damaged."""
    try:
        content = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_file(
    output: Path, write: Callable[[Path], object], *, made_by: str, may_replace: Callable[[Path], bool] | None = None
) -> None:
    """Have a file written beside its place, and give it the name once it is whole.

    Args:
        write: Writes the file that it is given.
        may_replace: Says of what has the name by then whether it may be replaced; without, nothing is.

    Raises:
        OutputError: It cannot be written, or something has the name.
    """
    with Workspace(output, made_by=made_by) as workspace:
        workspace.empty()
        with told(output):
            write(workspace.payload)
        workspace.publish(may_replace)


def repair(output: Path) -> None:
    """Put right what a killed run left of an output, unless another run is at it."""
    folder = beside(output)
    if not launched().is_first:  # the first of several processes does
        return
    if folder.is_symlink() or not folder.is_dir() or not is_marked(folder):
        return
    with suppress(OutputError):
        Workspace(output, made_by=None).close(keep=True)


def _lies_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except OSError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
