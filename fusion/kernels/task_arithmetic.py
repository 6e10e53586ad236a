"""The kernel of `fusion.methods.task_arithmetic` for one tuned model."""

from __future__ import annotations

import numpy as np

from ..tile import RawTile
from .native import Kernel
from .tiles import num_blocks, scratch, seen

_ADD_SCALED = Kernel("task_arithmetic", "add_scaled")


def add_scaled(tile: RawTile, out: np.ndarray, scale: float) -> np.ndarray:
    """Write `base + scale·δ` into `out`; return the figures."""
    blocks = num_blocks(tile)
    rows = np.empty((6, blocks))
    arrays = seen(tile.base), seen(tile.tuned[0]), seen(out)
    _ADD_SCALED(*arrays, len(out), float(scale), *scratch(2), rows, blocks)
    return rows
