"""The stored bytes of an array."""

from __future__ import annotations

import numpy as np


def as_bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of a contiguous array without copying them."""
    return array.reshape(-1).view(np.uint8).data
