"""Bytes of memory that several holders share."""

from __future__ import annotations

import threading
from typing import final


@final
class Allowance:
    """Bytes that all files together may hold of what was written before its turn to be hashed came."""

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> bool:
        """Return whether so many more bytes may be held, and count them."""
        with self._lock:
            fits = nbytes <= self._left
            self._left -= nbytes if fits else 0
        return fits

    def give(self, nbytes: int) -> None:
        """Count bytes as held no more."""
        with self._lock:
            self._left += nbytes
