"""The kernel of `fusion.transforms.scale` for one tuned model."""

from __future__ import annotations

import numpy as np

from ..arithmetic.tile import RawTile
from ..native import Kernel, address
from ..transforms import scale as definitions
from .stand_in import StandIn
from .tiles import num_blocks, scratch

_ADD_SCALED = Kernel("task_arithmetic", "add_scaled", "uf FFD Du")


def add_scaled(tile: RawTile, out: np.ndarray, scale: float) -> np.ndarray:
    """Write `base + scale·δ` into `out`; return the figures."""
    blocks = num_blocks(tile)
    rows = np.empty((6, blocks))
    _ADD_SCALED((tile.base, tile.tuned[0], out), len(out), scale, *scratch(2), address(rows), blocks)
    return rows


STAND_INS = (StandIn(signature=(definitions.add_scaled,), kernel=add_scaled),)
