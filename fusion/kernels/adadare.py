"""The kernels of `fusion.methods.adadare`."""

from __future__ import annotations

import numpy as np

from ..tile import RawTile
from .native import Kernel
from .tiles import num_blocks, root_of, scratch, seen

_SCORE_SUMS = Kernel("adadare", "score_sums")
_CLIPPED_SUMS = Kernel("adadare", "clipped_sums")
_DROP_AND_RESCALE = Kernel("adadare", "drop_and_rescale")


def score_sums(tile: RawTile) -> np.ndarray:
    """Return block sums of s, s², the number of non-zero s, and block maxima of s."""
    blocks = num_blocks(tile)
    rows = np.empty((4, blocks))
    count, inputs = len(tile.base), (seen(tile.base), seen(tile.tuned[0]))
    _SCORE_SUMS(*inputs, count, *root_of(tile), tile.start, *scratch(2), rows, blocks)
    return rows


def clipped_sums(tile: RawTile, c: float) -> np.ndarray:
    """Return block sums over `c·s >= 1`: their number, their s and their s²."""
    blocks = num_blocks(tile)
    rows = np.empty((3, blocks))
    count, inputs = len(tile.base), (seen(tile.base), seen(tile.tuned[0]))
    _CLIPPED_SUMS(*inputs, count, *root_of(tile), tile.start, float(c), *scratch(2), rows, blocks)
    return rows


def drop_and_rescale(tile: RawTile, out: np.ndarray, c: float, gamma: float) -> np.ndarray:
    """Write `base + γ·δ/q` where kept, else the base, into `out`; return the figures."""
    blocks = num_blocks(tile)
    rows = np.empty((6, blocks))
    arrays = seen(tile.base), seen(tile.tuned[0]), seen(out)
    place = (*root_of(tile), tile.start, tile.keys[0].low, tile.keys[0].high)
    _DROP_AND_RESCALE(*arrays, len(out), *place, float(c), float(gamma), *scratch(3), rows, blocks)
    return rows
