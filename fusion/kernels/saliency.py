"""The kernel of `fusion.methods.saliency`."""

from __future__ import annotations

import numpy as np

from ..arithmetic.ranks import Cut
from ..arithmetic.tile import RawTile
from .native import Kernel, address
from .tiles import num_blocks, root_of, scratch

_KEEP_SALIENT = Kernel("saliency", "keep_salient", "u Fuu ufuf FFFD Du")


def keep_salient(tile: RawTile, out: np.ndarray, cut: Cut, scale: float) -> np.ndarray:
    """Write `base + scale·δ` where the score is within the cut, else the base, into `out`; return the figures."""
    blocks = num_blocks(tile)
    rows = np.empty((6, blocks))
    place = (len(out), *root_of(tile), tile.start, cut.value, cut.place + 1, scale)
    _KEEP_SALIENT((tile.base, tile.tuned[0], out), *place, *scratch(3), address(rows), blocks)
    return rows
