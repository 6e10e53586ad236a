"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
BLOCK_BYTES = 4 << 20


def return_large_blocks() -> None:
    """Have freed blocks of 4 MiB and more go back to the system at once; does nothing where the C library is not glibc.

    glibc moves the size from which it does so up to 32 MiB as such blocks are freed. Whole tensors and matrices below
    that then stay in the arena of the thread that freed them, and the process holds twice what is in use.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)


def return_what_is_free() -> None:
    """Give the pages of freed blocks back to the system now, wherever between others they lie; glibc keeps them."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
