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


def drop(content: np.ndarray, start: int, stop: int) -> None:
    """Let go of the whole pages within `start … stop` of a map; they stay in the page cache.

    The page that the map ends in is its own to the end. What lies behind it is somebody's memory, which the system
    would empty.
    """
    last = -(-content.nbytes // mmap.PAGESIZE) if stop >= content.nbytes else stop // mmap.PAGESIZE
    _advise(content, -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, last * mmap.PAGESIZE, "MADV_DONTNEED")


def want(content: np.ndarray, start: int, stop: int) -> None:
    """Have the pages of `start … stop` of a map read from the disk, while this process does something else."""
    _advise(content, start // mmap.PAGESIZE * mmap.PAGESIZE, stop, "MADV_WILLNEED")


def _advise(content: np.ndarray, first: int, last: int, name: str) -> None:
    call, advice = _madvise(), getattr(mmap, name, None)
    if call is not None and advice is not None and last > first:
        call(content.__array_interface__["data"][0] + first, last - first, advice)
