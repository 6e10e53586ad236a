"""Sums that come out the same for any tiling, thread count and device.

A tensor is cut into blocks of 4,096 elements. Within a block the order of additions is fixed (halves are added until
one number is left, in float64); block sums are then added exactly rounded, so their order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from ..device import float64_device

BLOCK = 4096
MIN_VECTOR = 512  # fewer numbers are added sooner one by one
MAX_VECTOR = 2.0**900  # larger ones leave no room for a cut above them


def added(values: Iterable[float]) -> float:
    """Return the sum of plain floats, added up one by one in the order given.

    Python's own `sum` carries what is rounded off along from 3.12 on: the same weights would have another sum there.
    """
    return reduce(add, values, 0.0)


def wide(values: Any) -> Any:
    """Return an array in float64, on the CPU where its device has none."""
    if is_torch_array(values):
        return values.to(float64_device(values.device)).double()
    return values.astype(np.float64)


def beside(values: Any, other: Any, dtype: Any = None) -> Any:
    """Return an array where another is, in that one's dtype or in `dtype`: the way back from `wide`."""
    if is_torch_array(values):
        return values.to(dtype or other.dtype).to(other.device)  # narrowed first: it may have no float64
    return values.astype(dtype or other.dtype)


def block_sums(values: Any) -> Any:
    """Return the sum of each block of 4,096 values, in float64; shape (ceil(n / 4096),).

    Args:
        values: Shape (n,), any real dtype or bool, NumPy or torch.
    """
    xp = array_namespace(values)
    x = wide(values)
    padding = -x.shape[0] % BLOCK
    if padding:
        x = xp.concat([x, xp.zeros(padding, dtype=xp.float64, device=x.device)])
    x = xp.reshape(x, (-1, BLOCK))
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x = x[:, :half] + x[:, half:]
    return x[:, 0]


def exact_total(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return row sums over the blocks of all tiles, each correctly rounded; shape (rows,).

    Args:
        blocks: One (rows, num_blocks) array a tile.
    """
    joined = np.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0]
    if joined.shape[1] == 1:
        return joined[:, 0]
    return np.array([_rounded_sum(row) for row in joined])


def _rounded_sum(values: np.ndarray) -> float:
    """Return a sum of float64, correctly rounded; NaN where it is not finite.

    Many numbers are first cut at a common place: their upper parts are few enough bits to add up without rounding, in
    any order, and the lower parts are cut again until nothing is left (ExtractVector of Rump, Ogita and Oishi,
    Accurate floating-point summation, 2008). `math.fsum` takes ten times as long.
    """
    parts: list[float] = []
    while len(values) >= MIN_VECTOR:
        largest = float(np.abs(values).max())
        if largest == 0:
            return math.fsum(parts)
        if not largest < MAX_VECTOR:
            break
        cut = math.ldexp(1.0, math.frexp(largest)[1] + (len(values) + 1).bit_length())
        upper = (cut + values) - cut
        parts.append(float(upper.sum()))
        values = values - upper
    try:
        return math.fsum([*parts, *values.tolist()])
    except (OverflowError, ValueError):  # infinities, of both signs perhaps
        return math.nan
