"""Floats to codes with scales: FP8 in blocks as transformers' fine-grained format has it, MXFP4 as gpt-oss' experts do.

A value lies between two that a code has. It becomes the nearer one; or, by a uniform number, either, so that the mean
over many is right; or the nearer one, once what went wrong with the inputs before has been made up for (GPTQ,
Frantar et al. 2023, arXiv:2210.17323, eq. 2 and 3). Where a model is stored in the same format already, its scales stay
where the new values fit: elements that have not changed are then codes without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .coded import as_floats
from .codes import E2M1

FP8_LARGEST, FP8_LEAST = np.float32(448), -6  # the least exponent of a number that is not subnormal
FP4_LARGEST, FP4_LEAST = np.float32(6), 0
GROUP = 32  # elements that share an exponent in MXFP4
AT_ONCE = 128  # columns whose errors are passed on within, before those after them learn of it


def on_grid(scaled: Any, digits: int, least: int, largest: np.float32, uniform: np.ndarray | None) -> np.ndarray:
    """Return values that a small float has: the nearest, ties to even, or one beside by uniform numbers in [0, 1).

    Args:
        digits: Bits of the mantissa.
        least: The exponent below which steps no longer shrink.
    """
    _, exponent = np.frexp(scaled)
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, least) - digits)
    steps = scaled / step
    whole = np.rint(steps) if uniform is None else np.floor(steps + uniform)
    return np.clip(whole * step, -largest, largest)


def fp8(scaled: np.ndarray, uniform: np.ndarray | None = None) -> np.ndarray:
    """Return the values that E4M3 has."""
    return on_grid(scaled, 3, FP8_LEAST, FP8_LARGEST, uniform)


def fp4(scaled: np.ndarray, uniform: np.ndarray | None = None) -> np.ndarray:
    """Return the values that E2M1 has."""
    return on_grid(scaled, 1, FP4_LEAST, FP4_LARGEST, uniform)


def with_feedback(rows: np.ndarray, factor: np.ndarray, rounded: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Return rounded rows, where each column makes up for the errors of those before it.

    Args:
        rows: float32 (rows, inputs).
        factor: Upper triangular U with UᵀU = H⁻¹, (inputs, inputs), float32, H of the inputs.
        rounded: Makes of a column, and its number, what a decoder gives of it.
    """
    left, found = rows.astype(np.float32), np.empty(rows.shape, np.float32)
    for start in range(0, rows.shape[1], AT_ONCE):
        stop = min(start + AT_ONCE, rows.shape[1])
        errors = np.empty((len(rows), stop - start), np.float32)
        for column in range(start, stop):
            found[:, column] = rounded(left[:, column], column)
            errors[:, column - start] = (left[:, column] - found[:, column]) / factor[column, column]
            left[:, column:stop] -= np.outer(errors[:, column - start], factor[column, column:stop])
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return found


def fp8_rows(
    rows: np.ndarray,
    width: int,
    scale_dtype: np.dtype,
    *,
    uniform: np.ndarray | None = None,
    factor: np.ndarray | None = None,
    before: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return E4M3 codes of rows that share scales, as bytes of the same shape, and a scale for each `width` columns.

    Args:
        rows: float32, as many as a block has.
        before: Another model's rows as they are decoded, their codes, and their scales as stored.
    """
    columns = rows.shape[1]
    starts = np.arange(0, columns, width)
    largest = np.maximum.reduceat(np.abs(rows).max(axis=0), starts)
    # As transformers does, to the bit: what is stored is the reciprocal of what values are multiplied by, and that is
    # made of a reciprocal, as torch divides a number by a tensor.
    one = np.float32(1)
    forward = np.where(largest > 0, one / np.where(largest > 0, largest, one) * FP8_LARGEST, one)
    scales = np.float32(1) / forward
    if scale_dtype.itemsize == 1:
        scales = np.exp2(np.ceil(np.log2(np.maximum(scales, np.finfo(np.float32).tiny)))).astype(np.float32)
        forward = np.float32(1) / scales
    if before is not None:
        kept = as_floats(before[2])
        stays = (largest <= FP8_LARGEST * kept) & (kept > 0)
        scales, forward = np.where(stays, kept, scales), np.where(stays, np.float32(1) / kept, forward)
    wide, back = (np.repeat(each, width)[:columns] for each in (forward, scales))
    if factor is not None:
        rows = with_feedback(rows, factor, lambda column, number: fp8(column * wide[number]) * back[number])
    codes = fp8(rows * wide, uniform).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    stored = scales.astype(scale_dtype)
    if before is not None:
        same = np.logical_and.reduceat((rows == before[0]).all(axis=0), starts)
        codes = np.where(np.repeat(same, width)[:columns], before[1], codes)
        stored = np.where(same, before[2].view(f"u{stored.itemsize}"), stored.view(f"u{stored.itemsize}"))
        stored = stored.view(scale_dtype)
    return codes, stored


def mxfp4_rows(
    rows: np.ndarray,
    *,
    uniform: np.ndarray | None = None,
    factor: np.ndarray | None = None,
    before: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes of two codes each, (rows, inputs / 2), and exponents biased by 127, (rows, inputs / 32).

    Args:
        rows: float32 (outputs, inputs).
        before: Another model's rows as they are decoded, their bytes, and their exponents.
    """
    groups = (len(rows), -1, GROUP)
    largest = np.abs(rows).reshape(groups).max(axis=2)
    mantissa, exponent = np.frexp(largest / FP4_LARGEST)
    # The least exponent that lets the largest element pass: nothing is clipped.
    biased = np.where(largest > 0, exponent - (mantissa == np.float32(0.5)) + 127, 0)
    exponents = np.clip(biased, 0, 254).astype(np.uint8)
    if before is not None:
        exponents = np.where(largest <= FP4_LARGEST * as_floats(before[2]), before[2], exponents)
    scales = np.repeat(as_floats(exponents), GROUP, axis=1)
    if factor is not None:
        rows = with_feedback(rows, factor, lambda column, number: fp4(column / scales[:, number]) * scales[:, number])
    values = fp4(rows / scales, uniform)
    codes = np.searchsorted(E2M1[:8], np.abs(values)).astype(np.uint8) | (np.signbit(values).astype(np.uint8) << 3)
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    if before is not None:
        same = (rows == before[0]).reshape(groups).all(axis=2)
        packed = np.where(np.repeat(same, GROUP // 2, axis=1), before[1], packed)
        exponents = np.where(same, before[2], exponents)
    return packed, exponents
