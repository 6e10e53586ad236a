"""What the C library does with freed memory; nothing where that is not glibc."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
BLOCK_BYTES = 4 << 20
TRIM_BYTES = 128 << 10  # glibc's own
KEPT_BYTES = (1 << 30, 32 << 20)  # blocks that are kept: the larger, where glibc takes it


@cache
def _library() -> Any:
    found = ctypes.CDLL(None) if sys.platform == "linux" else None
    return found if hasattr(found, "mallopt") and hasattr(found, "malloc_trim") else None


def return_large_blocks() -> None:
    """Have freed blocks of 4 MiB and more go back to the system at once, and what is free now.

    glibc moves the size from which it does so up to 32 MiB as such blocks are freed. Whole tensors and matrices below
    that then stay in the arena of the thread that freed them, and the process holds twice what is in use.
    """
    library = _library()
    if library is not None:
        library.mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        library.malloc_trim(0)


def keep_large_blocks() -> None:
    """Have freed blocks stay, up to 1 GiB of them: a forward allocates the same sizes again and again.

    Else the system hands out new pages for each activation, and zeroes them: a ninth of a calibration's time.
    """
    library = _library()
    if library is not None:
        _ = any(library.mallopt(M_MMAP_THRESHOLD, size) for size in KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES[0])
