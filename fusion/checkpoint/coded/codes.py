"""Small codes to float32 values: whole bytes of floats and integers, halves of bytes, and bits packed densely."""

from __future__ import annotations

from functools import cache

import numpy as np

from ...dtypes import DTYPES
from ...native import Kernel, address

DENSE = Kernel("coded", "dense", "BB uuuu")
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # OCP MX, FP4


NUMBERS = np.arange(256, dtype=np.float32)  # a byte that is a number from 0 on


@cache
def byte_values(code: str) -> np.ndarray:
    """Return what each byte means as a stored element of one byte, such as `F8_E4M3` or `I8`: [256] float32."""
    kind = DTYPES[code].numpy
    assert kind is not None
    assert kind.itemsize == 1
    with np.errstate(all="ignore"):
        return np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)


def unpacked(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first `count` codes of each row of words, as uint8: packed densely, from the lowest bit on.

    Args:
        words: (rows, words), of any unsigned or signed integers in little-endian order.
    """
    packed = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return packed[:, :count]
    assert packed.shape[1] * 8 >= count * bits
    found = np.empty((len(packed), count), np.uint8)
    if found.size:
        DENSE((), address(packed), address(found), *packed.shape, count, bits)
    return found
