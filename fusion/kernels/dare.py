"""The kernel of `fusion.methods.dare` for one tuned model."""

from __future__ import annotations

import numpy as np

from ..arithmetic.tile import RawTile
from ..methods import dare
from ..native import Kernel, address
from .stand_in import StandIn
from .tiles import num_blocks, scratch

_DROP_AND_RESCALE = Kernel("dare", "drop_and_rescale", "u uuuff FFD Du")
_KEEP_TUNED = Kernel("dare", "keep_tuned", "u uuuf")


def drop_and_rescale(tile: RawTile, out: np.ndarray, keep: float, scale: float) -> np.ndarray:
    """Write `base + scale/keep·δ` where kept, else the base, into `out`; return the figures."""
    blocks = num_blocks(tile)
    rows = np.empty((6, blocks))
    arrays, key = (tile.base, tile.tuned[0], out), tile.keys[0]
    place = len(out), tile.start, key.low, key.high
    _DROP_AND_RESCALE(arrays, *place, keep, scale / keep, *scratch(2), address(rows), blocks)
    return rows


def keep_tuned(tile: RawTile, out: np.ndarray, keep: float) -> None:
    """Put the tuned elements that `drop_and_rescale` keeps into `out`, and the base's elsewhere."""
    key = tile.keys[0]
    _KEEP_TUNED((tile.base, tile.tuned[0], out), len(out), tile.start, key.low, key.high, keep)


STAND_INS = (StandIn(signature=(dare.drop_and_rescale,), kernel=drop_and_rescale),)
