"""The kernel of a trim of one model by saliency."""

from __future__ import annotations

import numpy as np

from ..arithmetic.ranks import NOTHING
from ..arithmetic.tile import RawTile
from ..native import Kernel, address
from ..transforms.chain import merge_kept
from ..transforms.merge import Merging, total
from ..transforms.trim import Within, saliencies
from .stand_in import StandIn
from .tiles import num_blocks, root_of, scratch

_KEEP_SALIENT = Kernel("saliency", "keep_salient", "u Fuu ufuf FFFD Du")


def takes(tile: RawTile, kept: Within, merging: Merging, _scale: float) -> bool:
    """Return whether the deltas of one model are added as they are, by one cut in float32."""
    [(least, most), *_], plain = kept.ranges, merging == total(1.0) and kept.factors == (1.0,)
    return kept.scores is saliencies and len(tile.tuned) == 1 and plain and not least.wide and most == NOTHING


def keep_salient(tile: RawTile, out: np.ndarray, kept: Within, _merging: Merging, scale: float) -> np.ndarray:
    """Write `base + scale·δ` where the score is within the cut, else the base, into `out`; return the figures."""
    blocks = num_blocks(tile)
    rows = np.empty((6, blocks))
    [(cut, _)] = kept.ranges
    place = (len(out), *root_of(tile), tile.start, cut.value, cut.place + 1, scale)
    _KEEP_SALIENT((tile.base, tile.tuned[0], out), *place, *scratch(3), address(rows), blocks)
    return rows


STAND_INS = (StandIn(signature=(merge_kept, Within, Merging), kernel=keep_salient, takes=takes),)
