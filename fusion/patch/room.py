"""Memory for the arrays of one frame, each thread its own: fresh pages would take a third of the time."""

from __future__ import annotations

import threading
from typing import final

import numpy as np


@final
class _Room(threading.local):
    """Memory that is used again."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, count: int, kind: type | np.dtype, *, zero: bool = False) -> np.ndarray:
        """Return room for elements under a name, with zeros in it if asked for."""
        dtype = np.dtype(kind)
        found = self._arrays.get(name)
        if found is None or found.nbytes < count * dtype.itemsize:
            found = self._arrays[name] = np.empty(count * dtype.itemsize, np.uint8)
        made = found[: count * dtype.itemsize].view(dtype)
        if zero:
            made[:] = 0
        return made


room = _Room()
