"""What the C library does with freed memory; nothing is done where that is not glibc."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
BLOCK_BYTES = 4 << 20


def _call(name: str) -> Any:
    """Return a function of glibc's, or what does nothing."""
    found = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    return found or (lambda *_: None)


def return_large_blocks() -> None:
    """Have freed blocks of 4 MiB and more go back to the system at once.

    glibc moves the size from which it does so up to 32 MiB as such blocks are freed. Whole tensors and matrices below
    that then stay in the arena of the thread that freed them, and the process holds twice what is in use.
    """
    _call("mallopt")(M_MMAP_THRESHOLD, BLOCK_BYTES)


def return_what_is_free() -> None:
    """Give the pages of freed blocks back to the system now, wherever between others they lie."""
    _call("malloc_trim")(0)
