"""Advice to the system about the pages of a memory map, given without holding the GIL as `mmap.madvise` does."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import numpy as np


@cache
def _madvise() -> Any:
    try:
        found = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):  # no such call on this system
        return None
    found.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return found


def _advise(content: np.ndarray, start: int, stop: int, advice: str) -> None:
    call, value = _madvise(), getattr(mmap, advice, None)
    if call is not None and value is not None and stop > start:
        call(content.__array_interface__["data"][0] + start, stop - start, value)


def drop(content: np.ndarray, start: int, stop: int) -> None:
    """Let go of the whole pages within `start … stop` of a map; they stay in the page cache."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    _advise(content, first, stop // mmap.PAGESIZE * mmap.PAGESIZE, "MADV_DONTNEED")


def read_ahead(content: np.ndarray, start: int, stop: int) -> None:
    """Have the pages of `start … stop` of a map brought into the page cache in the background."""
    _advise(content, start // mmap.PAGESIZE * mmap.PAGESIZE, stop, "MADV_WILLNEED")
