"""The kernels of chains: keep some deltas of each model, by rank or by chance, and merge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..arithmetic.sums import BLOCK
from ..arithmetic.tile import RawTile
from ..native import Kernel, address
from ..transforms.bernoulli import Drawn
from ..transforms.chain import merge_kept, takes_whole
from ..transforms.merge import Merging
from ..transforms.scale import add_weighted as add_weighted_definition
from ..transforms.trim import Range, Within, magnitudes
from .stand_in import StandIn, any_models
from .tiles import num_blocks, scratch, scratch_rows

_TRIM_ONE = Kernel("merge", "trim_one", "uu fufu fffu fu FFD Du")
_TRIM_INTO = Kernel("merge", "trim_into", "uu fufu fu FF")
_DROP_INTO = Kernel("merge", "drop_into", "u uuu ffu FF")
_MERGE = Kernel("merge", "merge", "uFu FF uuffu F FFFFFFD Du")
_ELECTIONS = {None: 0, "weighted": 1, "unweighted": 2}
_PIECE = 16 * BLOCK  # elements of which all models' deltas fit the cache
_EVERYWHERE = 2

# Puts what is kept of model k into a row, and adds its magnitudes to another.
Sparsify = Callable[[RawTile, int, int, int], None]


def _limits(limits: Range) -> tuple[float, int, float, int]:
    """Return a range as a kernel takes it: with the first place that is not selected."""
    least, most = limits
    return float(least.value), least.place + 1, float(most.value), most.place + 1


def takes_range(_tile: RawTile, kept: Within, _merging: Merging, _scale: float) -> bool:
    """Return whether deltas are kept by their magnitudes, compared in float32."""
    return kept.scores is magnitudes and not any(cut.wide for limits in kept.ranges for cut in limits)


def trim_and_merge(tile: RawTile, out: np.ndarray, kept: Within, merging: Merging, scale: float) -> np.ndarray:
    """Merge the deltas whose magnitude is within range; return the figures."""
    assert kept.factors is not None  # trims have no rescaling of their own
    ranges, factors = kept.ranges, kept.factors
    whole = takes_whole(kept, merging, scale)
    tuned, *others = tile.tuned
    if others:

        def sparsify(piece: RawTile, k: int, row: int, magnitudes: int) -> None:
            place, limits = (len(piece.base), piece.start), _limits(ranges[k])
            _TRIM_INTO((piece.base, piece.tuned[k]), *place, *limits, factors[k], k == 0, row, magnitudes)

        return _merge(tile, out, sparsify, merging, scale, whole=whole)
    blocks, weight = num_blocks(tile), float(merging.weights[0])
    rows = np.empty((6, blocks))
    divisor = (1.0 if merging.by_number else weight) if merging.normalize else 1.0
    _TRIM_ONE(
        (tile.base, tuned, out),
        *(len(out), tile.start),
        *_limits(ranges[0]),
        *(factors[0], weight, divisor or 1.0, _ELECTIONS[merging.election]),
        *(scale, whole),
        *scratch(2),
        *(address(rows), blocks),
    )
    return rows


def drop_and_merge(tile: RawTile, out: np.ndarray, kept: Drawn, merging: Merging, scale: float) -> np.ndarray:
    """Merge the deltas that each model's own draws keep; return the figures."""
    assert kept.factors is not None
    keeps, factors = kept.keeps, kept.factors

    def sparsify(piece: RawTile, k: int, row: int, magnitudes: int) -> None:
        key = piece.keys[k]
        place = len(piece.base), piece.start, key.low, key.high
        _DROP_INTO((piece.base, piece.tuned[k]), *place, keeps[k], factors[k], k == 0, row, magnitudes)

    return _merge(tile, out, sparsify, merging, scale, whole=takes_whole(kept, merging, scale))


def add_weighted(tile: RawTile, out: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    """Write `base + Σ_k c_k·δ_k` into `out`; return the figures."""

    def sparsify(piece: RawTile, k: int, row: int, magnitudes: int) -> None:
        place = len(piece.base), piece.start, 0, 0
        _DROP_INTO((piece.base, piece.tuned[k]), *place, 1.0, 1.0, k == 0, row, magnitudes)

    used = [k for k, coefficient in enumerate(coefficients) if coefficient != 0]
    merging = Merging(weights=tuple(coefficients[k] for k in used))
    whole = _EVERYWHERE if merging.weights == (1.0,) else False
    return _merge(tile, out, sparsify, merging, 1.0, whole=whole, used=used)


def _merge(
    tile: RawTile,
    out: np.ndarray,
    sparsify: Sparsify,
    merging: Merging,
    scale: float,
    *,
    whole: int,
    used: Sequence[int] | None = None,
) -> np.ndarray:
    """Sparsify and merge piece by piece.

    Args:
        whole: Whether what has a part takes the bits of the sole model, or all elements do (`_EVERYWHERE`).
        used: The models that `merging` is about, if not all.
    """
    blocks = num_blocks(tile)
    used = range(len(tile.tuned)) if used is None else used
    rows = np.empty((6, blocks))
    weights = np.array(merging.weights, np.float32)
    shares = np.ones_like(weights) if merging.by_number else weights
    total = sum(merging.weights)
    normalize = merging.normalize and (merging.election is not None or total != 0)
    sole = used[merging.sole] if whole and merging.sole is not None else 0
    for first in range(0, len(out), _PIECE):
        part = slice(first, first + _PIECE)
        tuned = tuple(array[part] for array in tile.tuned)
        piece = replace(tile, start=tile.start + first, base=tile.base[part], tuned=tuned)
        count = len(piece.base)
        *kept, unused, magnitudes = scratch_rows(len(used) + 2, count)
        for k in range(len(tuned)):
            sparsify(piece, k, kept[used.index(k)] if k in used else unused, magnitudes)
        _MERGE(
            (piece.base, tuned[sole], out[part]),
            *(count, (kept or [unused])[0], len(used), address(weights), address(shares)),
            *(_ELECTIONS[merging.election], normalize, total, scale, whole, magnitudes),
            *scratch(6),
            *(address(rows) + 8 * (first // BLOCK), blocks),
        )
    return rows


STAND_INS = (
    StandIn(signature=(merge_kept, Within, Merging), kernel=trim_and_merge, takes=takes_range),
    StandIn(signature=(merge_kept, Drawn, Merging), kernel=drop_and_merge, takes=any_models),
    StandIn(signature=(add_weighted_definition,), kernel=add_weighted, takes=any_models),
)
