"""The kernel of `fusion.budget`."""

from __future__ import annotations

import numpy as np

from ..arithmetic import budget
from ..arithmetic.tile import RawTile
from ..native import Kernel, address
from .stand_in import StandIn
from .tiles import num_blocks, scratch

_L1_SUMS = Kernel("budget", "l1_sums", "u FFD Du")


def l1_sums(tile: RawTile) -> np.ndarray:
    """Return block sums of |δ| and of |base|."""
    blocks = num_blocks(tile)
    rows = np.empty((2, blocks))
    _L1_SUMS((tile.base, tile.tuned[0]), len(tile.base), *scratch(2), address(rows), blocks)
    return rows


STAND_INS = (StandIn(signature=(budget.l1_sums,), kernel=l1_sums),)
