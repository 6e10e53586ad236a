"""Sums that come out the same for any tiling, thread count and device.

A tensor is cut into blocks of 4,096 elements. Within a block the order of additions is fixed (halves are added until
one number is left, in float64); block sums are then added exactly rounded, so their order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace

BLOCK = 4096


def block_sums(values: Any) -> Any:
    """Return the sum of each block of 4,096 values, in float64; shape (ceil(n / 4096),).

    Args:
        values: Shape (n,), any real dtype or bool, NumPy or torch.
    """
    xp = array_namespace(values)
    x = xp.astype(values, xp.float64)
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
    return np.array([_fsum(row) for row in joined.tolist()])


def _fsum(row: list[float]) -> float:
    try:
        return math.fsum(row)
    except (OverflowError, ValueError):  # infinities, of both signs perhaps
        return math.nan
