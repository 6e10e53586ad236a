"""The kernel of `fusion.methods.dare` for one tuned model."""

from __future__ import annotations

import numpy as np

from ..tile import RawTile
from .native import Kernel
from .tiles import num_blocks, scratch, seen

_DROP_AND_RESCALE = Kernel("dare", "drop_and_rescale")


def drop_and_rescale(tile: RawTile, out: np.ndarray, keep: float, scale: float) -> np.ndarray:
    """Write `base + scale/keep·δ` where kept, else the base, into `out`; return the figures."""
    blocks = num_blocks(tile)
    rows = np.empty((6, blocks))
    arrays, key = (seen(tile.base), seen(tile.tuned[0]), seen(out)), tile.keys[0]
    _DROP_AND_RESCALE(
        *arrays, len(out), tile.start, key.low, key.high, float(keep), scale / keep, *scratch(2), rows, blocks
    )
    return rows
