"""Memory that tensors are computed into and written from: a fixed number of buffers, reused."""

from __future__ import annotations

from queue import SimpleQueue
from typing import final

import numpy as np

from .output_file import PAGE, page_aligned


@final
class Buffer:
    """One buffer."""

    def __init__(self) -> None:
        self._bytes = page_aligned(0)

    def view(self, count: int, dtype: np.dtype, position: int) -> np.ndarray:
        """Return memory for elements, as far from the start of a page as they will be in the file."""
        # So that a piece of whole pages can go to the disk as it is, past the page cache, without a copy.
        start, nbytes = position % PAGE, count * dtype.itemsize
        if self._bytes.size < start + nbytes:
            self._bytes = page_aligned(PAGE + nbytes)
        return self._bytes[start : start + nbytes].view(dtype)


@final
class Buffers:
    """As many buffers as there may be tiles computed, or computed and not yet written."""

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[Buffer] = SimpleQueue()
        for _ in range(count):
            self._free.put(Buffer())

    def take(self) -> Buffer:
        """Return a buffer; wait for one if all are in use."""
        return self._free.get()

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back."""
        self._free.put(buffer)
