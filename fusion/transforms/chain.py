"""Chains of transforms: which deltas of each model are kept, how they become one, how strongly that one is added.

    trim(density) | elect(weights) | scale(λ)

A selection is told of how many models and elements a tensor has, yields the passes that it needs, and returns what it
keeps. A chain is a whole method's reduction: its selection's passes, then one map. The CPU kernel of that map is found
by what was kept (`fusion.kernels`), so a chain of known parts is fast whichever method it stands in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from array_api_compat import array_namespace

from ..arithmetic.group import Region
from ..arithmetic.passes import Fused, Map, Pass
from ..arithmetic.sums import block_sums
from ..arithmetic.tile import Tile
from .merge import Merging
from .scale import Scale, scaling


@dataclass(frozen=True, kw_only=True)
class Kept(ABC):
    """What is kept of a tensor, once all is known that a tile does not show. Hashable: passes are remembered by it.

    Attributes:
        factors: By what each model's kept deltas are multiplied; None where they have been rescaled one by one.
    """

    factors: tuple[float, ...] | None = None

    @abstractmethod
    def deltas(self, tile: Tile) -> list[Any]:
        """Return each model's deltas, zero where they are dropped; not yet times their factors."""


class Selector(ABC):
    """The first transform of a chain: which deltas of each model are kept."""

    region: ClassVar[Region] = "element"

    @property
    def fractions(self) -> tuple[float, ...]:
        """How much is kept, of each model or of all; 0 is nothing and 1 all of it, for certain. Empty if unknown."""
        return ()

    @abstractmethod
    def settle(self, num_models: int, num_elements: int) -> Generator[Pass, Any, Kept]:
        """Yield the passes that are needed over a tensor; return what is kept of it."""

    def __or__(self, merging: Merging) -> Chain:
        return Chain(selection=self, merging=merging)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """`selection | merging | scale(λ)`: W = W_pre + λ·merged(kept δ_1, …, kept δ_K)."""

    selection: Selector
    merging: Merging
    strength: float = 1.0

    def __or__(self, end: Scale) -> Chain:
        return replace(self, strength=end.strength)

    @cached_property
    def identity(self) -> Literal["base", "tuned"] | None:
        """Which input is left as it is: the base where nothing is added, a first model that is alone and whole."""
        fractions, merging = self.selection.fractions, self.merging
        if self.strength == 0 or not any(merging.weights) or max(fractions, default=1) == 0:
            return "base"
        factor = merging.sole_factor if merging.sole == 0 else None
        return (
            "tuned" if min(fractions, default=0) == 1 and factor is not None and self.strength * factor == 1 else None
        )

    def reduce(self, num_elements: int) -> Generator[Pass, Any, Map]:
        """Yield the selection's passes; return the map of the whole chain."""
        num_models = len(self.merging.weights)
        if self.identity == "base":
            return scaling((0.0,) * num_models)
        kept = yield from self.selection.settle(num_models, num_elements)
        return Map(function=merge_kept, arguments=(kept, self.merging, self.strength))


def merge_kept(tile: Tile, kept: Kept, merging: Merging, scale: float) -> Fused:
    """Return `base + scale·merged` of what is kept; the base's bits where no model has a part.

    Where one model alone has a part, and its deltas are taken as they are, the kept have its bits.
    """
    xp = array_namespace(tile.base)
    deltas, factors = kept.deltas(tile), kept.factors
    if factors is not None:
        deltas = [factor * delta for factor, delta in zip(factors, deltas, strict=True)]
    merged, parts = merging.merge(deltas)
    moved = parts[0]
    for part in parts[1:]:
        moved = moved | part
    values = tile.tuned[merging.sole or 0] if takes_whole(kept, merging, scale) else tile.base + scale * merged
    return Fused(values=xp.where(moved, values, tile.base), kept=moved)


def takes_whole(kept: Kept, merging: Merging, scale: float) -> bool:
    """Return whether one model alone has a part and its deltas are taken as they are: `base + δ` would round again."""
    sole, factor = merging.sole, merging.sole_factor
    if kept.factors is None or sole is None or factor is None:
        return False
    return kept.factors[sole] * scale * factor == 1


K = TypeVar("K", bound=Kept)


def l1_norms(tile: Tile, kept: Kept) -> Any:
    """Return block sums of |δ|, then of |δ| of what is kept, a row a model."""
    xp = array_namespace(tile.base)
    return xp.stack([block_sums(xp.abs(row)) for row in (*tile.deltas, *kept.deltas(tile))])


def rescaled_to_l1(kept: K) -> Generator[Pass, Any, K]:
    """Return what is kept with the factors that give each model's deltas the L1 norm they all had before."""
    sums: np.ndarray = yield Pass(function=l1_norms, arguments=(kept,))
    before, after = np.split(sums, 2)
    factors = tuple(float(b / a) if a else 1.0 for b, a in zip(before, after, strict=True))
    return replace(kept, factors=factors)
