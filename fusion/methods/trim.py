"""What methods share that keep some deltas of each model, by rank or by chance, and merge them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from ..arithmetic.elect import Merging
from ..arithmetic.passes import Fused, Map, Pass
from ..arithmetic.ranks import NOTHING, Cut, find_cuts
from ..arithmetic.sums import block_sums
from ..arithmetic.tile import Tile

Rescale = Literal["none", "l1"]
Range = tuple[Cut, Cut]  # what is kept: all that the first selects and the second does not


def magnitudes(tile: Tile) -> list[Any]:
    """Return |δ| of each model."""
    return [array_namespace(tile.base).abs(delta) for delta in tile.deltas]


def within(tile: Tile, ranges: Sequence[Range], scores: Callable[[Tile], Sequence[Any]]) -> list[Any]:
    """Return where each model's scores lie in its range; bool, shape (n,)."""
    found = []
    for score, (least, most) in zip(scores(tile), ranges, strict=True):
        found.append(least.selects(score, tile.start) & ~most.selects(score, tile.start))
    return found


def l1_kept(tile: Tile, ranges: tuple[Range, ...]) -> Any:
    """Return block sums of |δ|, then of those within range, a row a model."""
    xp = array_namespace(tile.base)
    sizes = magnitudes(tile)
    kept = [
        size * xp.astype(mask, size.dtype) for size, mask in zip(sizes, within(tile, ranges, magnitudes), strict=True)
    ]
    return xp.stack([block_sums(row) for row in (*sizes, *kept)])


def merge_kept(
    tile: Tile, deltas: Sequence[Any], factors: Sequence[float] | None, merging: Merging, scale: float
) -> Fused:
    """Return `base + scale·merged` of kept deltas times their factors; the base's bits where none has a part.

    Where one model alone has a part, and its deltas are taken as they are, the kept have its bits.

    Args:
        deltas: One array a model, zero where it is dropped.
        factors: One a model, or None for deltas that have been rescaled one by one.
    """
    xp = array_namespace(tile.base)
    if factors is not None:
        deltas = [factor * delta for factor, delta in zip(factors, deltas, strict=True)]
    merged, parts = merging.merge(deltas)
    kept = parts[0]
    for part in parts[1:]:
        kept = kept | part
    values = xp.where(kept, tile.base + scale * merged, tile.base)
    sole, factor = merging.sole, merging.sole_factor
    if factors is not None and sole is not None and factor is not None and factors[sole] * scale * factor == 1:
        values = xp.where(kept, tile.tuned[sole], tile.base)
    return Fused(values=values, kept=kept)


def trim_and_merge(
    tile: Tile, ranges: tuple[Range, ...], factors: tuple[float, ...], merging: Merging, scale: float
) -> Fused:
    """Return the merge of the deltas whose magnitude is within range."""
    xp = array_namespace(tile.base)
    masks = within(tile, ranges, magnitudes)
    kept = [xp.where(mask, delta, xp.zeros_like(delta)) for mask, delta in zip(masks, tile.deltas, strict=True)]
    return merge_kept(tile, kept, factors, merging, scale)


def trimming(
    counts: Sequence[tuple[int, int]], num_elements: int, merging: Merging, scale: float, rescale: Rescale
) -> Generator[Pass, Any, Map]:
    """Return the map that keeps of each model the `count` largest deltas but the `outliers` largest of these.

    Args:
        counts: (count, outliers) of each model.
    """
    wanted = [(k, count) for k, pair in enumerate(counts) for count in pair]
    cuts = yield from find_cuts(magnitudes, (), wanted, num_elements)
    ranges = tuple(zip(cuts[::2], cuts[1::2], strict=True))
    factors = (1.0,) * len(ranges)
    if rescale == "l1":
        sums: np.ndarray = yield Pass(function=l1_kept, arguments=(ranges,))
        before, after = np.split(sums, 2)
        factors = tuple(float(b / a) if a else 1.0 for b, a in zip(before, after, strict=True))
    return Map(function=trim_and_merge, arguments=(ranges, factors, merging, scale))


def identity_of(scale: float, merging: Merging, density: tuple[float, ...]) -> Literal["base", "tuned"] | None:
    """Return the input that is left as it is where a fraction `density` of the deltas is kept and none is rescaled."""
    if scale == 0 or not any(merging.weights) or max(density) == 0:
        return "base"
    factor = merging.sole_factor if merging.sole == 0 else None
    return "tuned" if min(density) == 1 and factor is not None and scale * factor == 1 else None


__all__ = ["NOTHING", "Rescale", "identity_of", "magnitudes", "merge_kept", "trim_and_merge", "trimming"]
