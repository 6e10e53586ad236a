"""A file whose bytes are read through a memory map, from the first read on."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import final

import numpy as np

from ..errors import CheckpointError
from .identity import FileIdentity, refuse_changed
from .pages import drop

MIN_RELEASED = 1 << 20  # the pages of smaller tensors are let go of together
TOGETHER = 1 << 16  # bytes of small tensors


@final
class MappedFile:
    """A read-only memory map, made when it is first asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.identity = FileIdentity.of(file)
        self._map: mmap.mmap | None = None
        self._used = 0  # bytes of small tensors whose pages are still held, and where they lie
        self._first, self._last = self.nbytes, 0

    @property
    def nbytes(self) -> int:
        """Of the file, as it was when it was opened."""
        return self.identity.nbytes

    def mapped(self) -> mmap.mmap:
        """Return the map.

        Raises:
            CheckpointError: The file cannot be read any more.
        """
        if self._map is None:
            try:
                with self.file.open("rb") as stream:
                    self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                refuse_changed({self.file: self.identity})
                raise CheckpointError(f"cannot read `{self.file}`: {error}") from error
            if hasattr(mmap, "MADV_SEQUENTIAL"):  # reads ahead: three times as fast from a cold disk
                self._map.madvise(mmap.MADV_SEQUENTIAL)
        return self._map

    def content(self) -> np.ndarray:
        """Return all bytes, as a view."""
        return np.frombuffer(self.mapped(), np.uint8)

    def array(self, start: int, count: int, dtype: np.dtype) -> np.ndarray:
        """Return elements from a byte on: a view, or a copy where others did not align them."""
        if not count:
            return np.empty(0, dtype)
        view = np.frombuffer(self.mapped(), dtype, count, start)
        # Other writers do not align tensors to their elements; kernels and `view` want them aligned.
        return view if view.flags.aligned else view.copy()

    def release(self, start: int, stop: int) -> None:
        """Let go of the memory pages of bytes that have been used; they stay in the page cache."""
        if self._map is None:
            return
        if stop - start >= MIN_RELEASED:
            drop(self.content(), start, stop)
            return
        # Of two threads at a time one may be missed: pages then go a little later. A page holds several tensors: those
        # that are still in use come back.
        self._used += stop - start
        is_end = stop == self.nbytes  # most often the last: what the system has mapped around the others goes as well
        self._first, self._last = 0 if is_end else min(self._first, start), max(self._last, stop)
        if is_end or self._used >= TOGETHER:
            drop(self.content(), self._first, self._last)
            self._used, self._first, self._last = 0, self.nbytes, 0
