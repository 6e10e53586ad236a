"""The kernels of `fusion.methods.adadare`."""

from __future__ import annotations

import numpy as np

from ..arithmetic.tile import RawTile
from ..methods import adadare
from ..native import Kernel, address
from .stand_in import StandIn
from .tiles import num_blocks, root_of, scratch, scratch_block

_SCORE_SUMS = Kernel("adadare", "score_sums", "u Fuu u FFD Du")
_CLIPPED_SUMS = Kernel("adadare", "clipped_sums", "u Fuu uf FFD Du")
_KEEP_TUNED = Kernel("adadare", "keep_tuned", "u Fuu uuuf F")
_DROP_AND_RESCALE = Kernel("adadare", "drop_and_rescale", "u Fuu uuuff FFFD Du")


def score_sums(tile: RawTile) -> np.ndarray:
    """Return block sums of s, s², the number of non-zero s, and block maxima of s."""
    blocks = num_blocks(tile)
    rows = np.empty((4, blocks))
    inputs = tile.base, tile.tuned[0]
    _SCORE_SUMS(inputs, len(tile.base), *root_of(tile), tile.start, *scratch(2), address(rows), blocks)
    return rows


def clipped_sums(tile: RawTile, c: float) -> np.ndarray:
    """Return block sums over `c·s >= 1`: their number, their s and their s²."""
    blocks = num_blocks(tile)
    rows = np.empty((3, blocks))
    inputs = tile.base, tile.tuned[0]
    _CLIPPED_SUMS(inputs, len(tile.base), *root_of(tile), tile.start, c, *scratch(2), address(rows), blocks)
    return rows


def drop_and_rescale(tile: RawTile, out: np.ndarray, c: float, gamma: float) -> np.ndarray:
    """Write `base + γ·δ/q` where kept, else the base, into `out`; return the figures."""
    blocks = num_blocks(tile)
    rows = np.empty((6, blocks))
    place = (*root_of(tile), tile.start, tile.keys[0].low, tile.keys[0].high)
    arrays = tile.base, tile.tuned[0], out
    _DROP_AND_RESCALE(arrays, len(out), *place, c, gamma, *scratch(3), address(rows), blocks)
    return rows


def keep_tuned(tile: RawTile, out: np.ndarray, c: float) -> None:
    """Put the tuned elements that `drop_and_rescale` keeps into `out`, and the base's elsewhere."""
    place = (*root_of(tile), tile.start, tile.keys[0].low, tile.keys[0].high)
    _KEEP_TUNED((tile.base, tile.tuned[0], out), len(out), *place, c, scratch_block())


STAND_INS = (
    StandIn(signature=(adadare.score_sums,), kernel=score_sums),
    StandIn(signature=(adadare.clipped_sums,), kernel=clipped_sums),
    StandIn(signature=(adadare.drop_and_rescale,), kernel=drop_and_rescale),
)
