"""What a method asks of a tensor: passes that look at every element, then a map that changes each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from array_api_compat import array_namespace

from .sums import block_sums, exact_total, wide
from .tile import Tile


def join_blocks(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Return the block sums of consecutive pieces as those of one tile."""
    return np.concatenate(pieces, axis=1)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One look at every element before any is changed.

    Attributes:
        function: `function(tile, *arguments)` returns a (rows, num_blocks) array of block sums. A module-level
            function: the CPU kernel that stands in for it is found by its identity.
        combine: Turns the arrays of all tiles, in order, into what `Method.reduce` is sent.
        join: Turns the arrays of consecutive pieces of a tile into that of the tile.
        as_stored: Whether the function takes the `RawTile`, in NumPy, for a look at the bits themselves.
        first_only: Whether a look at the tensor's first tile is enough.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    combine: Callable[[Sequence[np.ndarray]], Any] = exact_total
    join: Callable[[Sequence[np.ndarray]], np.ndarray] = join_blocks
    as_stored: bool = False
    first_only: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Fused:
    """What a method made of a tile.

    Attributes:
        values: Fused elements, float32 or float64, shape (n,).
        kept: Which deltas had a part in it; bool, shape (n,).
        clipped: Which keep probabilities were cut at 1, or None for a method without such.
    """

    values: Any
    kept: Any
    clipped: Any = None


@dataclass(frozen=True, kw_only=True)
class Map:
    """The second step of a method over one tensor, ready to run on any of its tiles.

    Attributes:
        function: `function(tile, *arguments)` returns `Fused`; module-level, as for `Pass`.
        figures: What the reduction learned of the tensor, for the manifest.
    """

    function: Callable[..., Fused]
    arguments: tuple[Any, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What a transform that only looks gives in place of a map: nothing is written.

    Attributes:
        is_finite: False has the inputs searched for NaN and infinity, which are refused.
    """

    value: Any
    is_finite: bool = True


Reduction = Generator[Pass, Any, Map | Finding]
T = TypeVar("T")


def run_on(tile: Tile, passes: Generator[Pass, Any, T]) -> T:
    """Return what passes over a tensor that is one tile come to, by their definitions."""
    found = None
    try:
        while True:
            wanted = passes.send(found)
            found = wanted.combine([np.asarray(wanted.function(tile, *wanted.arguments))])
    except StopIteration as end:
        return end.value


def measure(tile: Tile, stored: Any, fused: Fused) -> Any:
    """Return block sums of the figures that every tensor is recorded with, shape (6, num_blocks).

    Rows: kept deltas, zero deltas, clipped probabilities, Σ|δ| over all tuned models, and the L1 and squared L2
    distance between `stored`, the fused values as rounded for storage, and the base.
    """
    xp = array_namespace(tile.base)
    zero = xp.ones(tile.base.shape, dtype=xp.bool, device=tile.base.device)
    magnitude = xp.zeros_like(tile.base)
    for delta in tile.deltas:
        zero = zero & (delta == 0)
        magnitude = magnitude + xp.abs(delta)
    clipped = xp.zeros_like(zero) if fused.clipped is None else fused.clipped
    moved = xp.abs(stored - tile.base)
    rows = (fused.kept & ~zero, zero, clipped & ~zero, magnitude, moved, wide(moved) ** 2)
    return xp.stack([block_sums(row) for row in rows])
