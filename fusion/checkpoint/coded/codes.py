"""Small codes to float32 values: whole bytes of floats and integers, halves of bytes, and bits packed densely."""

from __future__ import annotations

from functools import cache

import numpy as np

from ...dtypes import DTYPES

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # OCP MX, FP4


@cache
def byte_values(code: str) -> np.ndarray:
    """Return what each byte means as a stored element of one byte, such as `F8_E4M3` or `I8`: [256] float32."""
    kind = DTYPES[code].numpy
    assert kind is not None
    assert kind.itemsize == 1
    with np.errstate(all="ignore"):
        return np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)


@cache
def byte_pairs(code: str) -> np.ndarray:
    """Return what two bytes that follow one another mean, by the little-endian number that they are."""
    return _pairs(byte_values(code))


def nibble_pairs(values: np.ndarray, *, high_first: bool = False) -> np.ndarray:
    """Return what the two halves of a byte mean, where `values` are those of the sixteen codes."""
    pairs = _pairs(values)
    return np.ascontiguousarray(pairs.reshape(16, 16).T).reshape(-1) if high_first else pairs


def _pairs(values: np.ndarray) -> np.ndarray:
    """Return float32 pairs, each as one complex64: the first code is the lower part of the number that looks it up."""
    first, second = np.meshgrid(values, values)
    return np.stack([first, second], axis=-1).astype(np.float32).view(np.complex64).reshape(-1)


def looked_up(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the float32 pairs of codes: twice as long in the last axis, new memory."""
    return np.take(table, codes, mode="clip").view(np.float32)


def of_bytes(code: str, stored: np.ndarray) -> np.ndarray:
    """Return float32 values of elements of one byte, (rows, columns)."""
    flat = stored.view(np.uint8)
    if flat.shape[-1] % 2 or not flat.flags.c_contiguous:
        return np.take(byte_values(code), flat, mode="clip")
    return looked_up(byte_pairs(code), flat.view(np.uint16))


def small_pairs(values: np.ndarray) -> np.ndarray:
    """Return what two codes below 16 mean that have a byte each, by the little-endian number of both bytes."""
    table = np.zeros((16, 256, 2), np.float32)
    table[:, :16] = _pairs(values).view(np.float32).reshape(16, 16, 2)
    return table.view(np.complex64).reshape(-1)


def unpacked(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first `count` codes of each row of words, as uint8: packed densely, from the lowest bit on.

    Args:
        words: (rows, words), of any unsigned or signed integers in little-endian order.
    """
    packed = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return packed[:, :count]
    if bits == 4:
        found = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
        np.bitwise_and(packed, 15, out=found[:, ::2])
        np.right_shift(packed, 4, out=found[:, 1::2])
        return found[:, :count]
    digits = np.unpackbits(packed, axis=1, bitorder="little")[:, : count * bits].reshape(len(packed), count, bits)
    return digits @ (1 << np.arange(bits)).astype(np.uint8)
