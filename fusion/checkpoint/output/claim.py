"""The folder beside an output in which one run at a time puts it together."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import final

from ...errors import OutputError, os_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@final
class Claim:
    """A folder, made if it isn't there, that other runs are kept out of until it is released or this process ends.

    The lock is the system's and lies on the folder itself: a run that is killed leaves none behind, and a rename takes
    it along. Where the system or the file system has no such lock, nobody is kept out.

    Raises:
        OutputError: Another run has it, or it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._descriptor = self._lock()
        except OSError as error:
            raise os_error(error, folder) from error

    def _lock(self) -> int | None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            if fcntl is None:
                return None
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise OutputError(
                    f"another run is writing `{self.folder}`", hint="wait for it, or choose another output with `-o`"
                ) from None
            except OSError:
                os.close(descriptor)
                return None
            if self._lies_here(descriptor):
                return descriptor
            os.close(descriptor)  # the run that had it has just renamed or removed it

    def _lies_here(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.folder.stat())
        except OSError:
            return False

    def empty(self) -> None:
        """Remove what is in the folder."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def release(self) -> None:
        """Let others have the folder; it goes if nothing is in it."""
        if self._descriptor is None or self._lies_here(self._descriptor):
            with suppress(OSError):  # not empty, or already gone
                self.folder.rmdir()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.release()
