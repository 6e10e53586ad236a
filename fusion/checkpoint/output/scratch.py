"""A folder in `$TMPDIR` for one run: it goes with the run, and what killed runs left there goes with the next."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import final

from .owner import is_gone, this_process
from .workspace import MARK, lock, read_mark, told

PREFIX = "sculpt-scratch-"


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
            _clear(place)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            self.close = weakref.finalize(self, _remove, self.folder, lock(self.folder))
            (self.folder / MARK).write_text(json.dumps(this_process()) + "\n", encoding="utf-8")

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _remove(folder: Path, descriptor: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)


def _clear(place: Path) -> None:
    """Remove the folders of runs of this user that have ended."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or not is_gone(read_mark(folder)):
                continue
            _remove(folder, lock(folder))
