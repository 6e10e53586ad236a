"""A command in a process of its own in which one file event goes wrong: a kill, or an error of the system.

An event is what Python's audit hooks see (opening, renaming, removing, making), and each `os.pwrite`, `os.fsync` and
`os.fdatasync`, of paths under one folder. The process is forked, so that nothing is imported again.
"""

from __future__ import annotations

import atexit
import errno
import importlib
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal["count", "kill", "EIO", "ENOSPC", "record"]
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        code: As `subprocess` has it: negative for a signal.
        events: How many there were.
    """

    code: int
    stderr: str
    events: int


@dataclass(kw_only=True)
class Faults:
    """Counts the events of a process, and has one of them go wrong.

    Attributes:
        root: Paths under it count.
        point: Which event, from 0.
        store: Where `record` keeps what was brought to the disk.
    """

    root: Path
    mode: Mode
    point: int
    tally: Path
    store: Path | None = None
    count: int = 0
    inside: bool = False
    kept: list[int] = field(default_factory=list)

    def install(self) -> None:
        """Begin to watch."""
        sys.addaudithook(self.hook)
        for name in ("pwrite", "fsync", "fdatasync"):
            setattr(os, name, self.watched(name, getattr(os, name)))

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any) -> Any:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            self.event(path)
            result = function(descriptor, *arguments)
            if self.mode == "record" and name != "pwrite":
                self.record(path, descriptor)
            return result

        return call

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and (flags or 0) & WRITING:
                self.event(path)
        elif event in CHANGES and isinstance(arguments[0], (str, bytes, os.PathLike)):
            self.keep_alive(arguments[1] if event == "os.rename" else arguments[0])
            self.event(arguments[0])

    def event(self, path: Any) -> None:
        whole = os.path.abspath(os.fsdecode(path))
        if not whole.startswith(str(self.root)):
            return
        number, self.count = self.count, self.count + 1
        if number != self.point:
            return
        if self.mode in ("kill", "record"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode in ("EIO", "ENOSPC"):
            code = getattr(errno, self.mode)
            raise OSError(code, os.strerror(code), whole)

    def keep_alive(self, path: Any) -> None:
        """Hold what is about to lose its name, so that its number is given to nothing else."""
        if self.mode == "record":
            self.inside = True
            try:
                self.kept.append(os.open(path, os.O_RDONLY))
            except OSError:
                pass
            finally:
                self.inside = False

    def record(self, path: Path, descriptor: int) -> None:
        """Keep what is on the disk for certain: the content of a file, or the names in a folder."""
        assert self.store is not None
        self.inside = True
        number = os.fstat(descriptor).st_ino
        if path.is_dir():
            names = {entry.name: entry.stat(follow_symlinks=False).st_ino for entry in os.scandir(path)}
            (self.store / f"names-{number}").write_text("".join(f"{ino} {name}\n" for name, ino in names.items()))
        else:
            shutil.copyfile(path, self.store / f"content-{number}")
        self.inside = False


def run(folder: Path, argv: list[str], mode: Mode = "count", point: int = -1, store: Path | None = None) -> Outcome:
    """Run a command in a folder; its temporary files go beside, into `tmp`."""
    scratch = folder.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    stderr, tally = folder.parent / "stderr", folder.parent / "tally"
    tally.write_text("0")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _run_here(folder, argv, Faults(root=folder.parent, mode=mode, point=point, tally=tally, store=store), stderr)
    _, status = os.waitpid(child, 0)
    if mode == "count" and (folder.parent / "modules").exists():
        _import_here((folder.parent / "modules").read_text().split())
    return Outcome(
        code=os.waitstatus_to_exitcode(status), stderr=stderr.read_text(), events=int(tally.read_text() or 0)
    )


def _import_here(names: list[str]) -> None:
    """Import what the command imported, so that the next one need not."""
    for name in names:
        if name not in sys.modules and not name.startswith("_"):
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)


def _run_here(folder: Path, argv: list[str], faults: Faults, stderr: Path) -> None:
    """Run the command in this process, and end it."""
    code = 99
    try:
        os.chdir(folder)
        tempfile.tempdir = str(folder.parent / "tmp")
        out = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        from sculpt.cli import app, console

        console.console.file = sys.stderr
        sys.argv = ["sculpt", *argv]
        descriptor = os.open(faults.tally, os.O_WRONLY | os.O_TRUNC)
        atexit._clear()  # pyright: ignore[reportAttributeAccessIssue] (those of the process that was forked)
        faults.install()
        try:
            app.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if faults.mode == "count":
            (faults.root / "modules").write_text("\n".join(sys.modules))
        atexit._run_exitfuncs()  # pyright: ignore[reportAttributeAccessIssue]
        os.write(descriptor, str(faults.count).encode())
    except BaseException:
        traceback.print_exc()
        code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def files_in(folder: Path) -> dict[str, bytes | None]:
    """Return all that lies in a folder, folders as None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
