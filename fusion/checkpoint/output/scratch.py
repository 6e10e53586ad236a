"""A folder in `$TMPDIR` for one run: it goes with the run, and what killed runs left there goes with the next."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import final

from .owner import is_gone, this_process
from .workspace import MARK, lock, read_mark, told

PREFIX = "sculpt-scratch-"
MOST_SECONDS = 60  # that a folder may be without its mark


@final
class Scratch:
    """A new folder for files that nobody wants once the process has ended, or nothing refers to this any more.

    Attributes:
        close: Removes it.

    Raises:
        OutputError: It cannot be made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        place = Path(tempfile.gettempdir()) if parent is None else parent
        with told(place):
            clear_scratch(place)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            self.close = weakref.finalize(self, _remove, self.folder, lock(self.folder))
            (self.folder / MARK).write_text(json.dumps(this_process()) + "\n", encoding="utf-8")

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def clear_scratch(place: Path | None = None) -> None:
    """Remove what runs of this user left that have ended."""
    for folder in (place or Path(tempfile.gettempdir())).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or not (is_gone(read_mark(folder)) or _is_abandoned(folder)):
                continue
            _remove(folder, lock(folder))


def _is_abandoned(folder: Path) -> bool:
    """Return whether a folder has been without a mark for longer than it takes to write one."""
    names = {path.name for path in folder.iterdir()}
    return names <= {MARK} and not read_mark(folder) and time.time() - folder.stat().st_mtime > MOST_SECONDS


def _remove(folder: Path, descriptor: int | None) -> None:
    try:
        for path in folder.iterdir():
            if path.name != MARK:  # the last to go: without it the rest would be nobody's
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError:
        pass  # the next run removes what is left
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        if descriptor is not None:
            os.close(descriptor)
