"""The kernel of `fusion.budget`."""

from __future__ import annotations

import numpy as np

from ..tile import RawTile
from .native import Kernel
from .tiles import num_blocks, scratch, seen

_L1_SUMS = Kernel("budget", "l1_sums")


def l1_sums(tile: RawTile) -> np.ndarray:
    """Return block sums of |δ| and of |base|."""
    blocks = num_blocks(tile)
    rows = np.empty((2, blocks))
    _L1_SUMS(seen(tile.base), seen(tile.tuned[0]), len(tile.base), *scratch(2), rows, blocks)
    return rows
