"""`trim(density)` keeps the largest deltas of each model, `band(density, gamma)` those below the very largest."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import array_namespace

from ..arithmetic.passes import Pass
from ..arithmetic.per_model import PerModel, as_tuple, spread
from ..arithmetic.ranks import Cut, find_cuts
from ..arithmetic.tile import Tile
from .chain import Kept, Selector, rescaled_to_l1

Rescale = Literal["none", "l1"]
Range = tuple[Cut, Cut]  # what is kept: all that the first selects and the second does not
DeltaScores = Callable[[Tile], Sequence[Any]]  # by which deltas are ranked, one array a model


def magnitudes(tile: Tile) -> list[Any]:
    """Return |δ| of each model."""
    return [array_namespace(tile.base).abs(delta) for delta in tile.deltas]


def saliencies(tile: Tile) -> list[Any]:
    """Return `sqrt(H)·|δ|` of each model, in the tile's dtype."""
    return magnitudes(tile) if tile.root is None else [tile.root * magnitude for magnitude in magnitudes(tile)]


@dataclass(frozen=True, kw_only=True)
class Within(Kept):
    """The deltas whose scores lie in their model's range."""

    ranges: tuple[Range, ...]
    scores: DeltaScores = magnitudes

    def deltas(self, tile: Tile) -> list[Any]:
        """Return each model's deltas, zero where their scores lie elsewhere."""
        xp, found = array_namespace(tile.base), []
        for delta, score, (least, most) in zip(tile.deltas, self.scores(tile), self.ranges, strict=True):
            mask = least.selects(score, tile.start) & ~most.selects(score, tile.start)
            found.append(xp.where(mask, delta, xp.zeros_like(delta)))
        return found


def counts(num_elements: int, density: float, gamma: float) -> tuple[int, int]:
    """Return how many of the largest are looked at, and how many of these are outliers; the difference is kept."""
    kept, outliers = int(density * num_elements), int(gamma * num_elements)
    smallest = max(0, num_elements - kept - outliers)
    return num_elements - smallest, num_elements - smallest - kept


@dataclass(frozen=True, kw_only=True)
class Ranked(Selector):
    """`floor(density·N)` deltas of each model by rank; of equal scores those with the lowest index count as larger."""

    density: tuple[float, ...]
    gamma: tuple[float, ...]
    rescale: Rescale
    scores: DeltaScores

    @property
    def fractions(self) -> tuple[float, ...]:
        """The density."""
        return self.density

    def settle(self, num_models: int, num_elements: int) -> Generator[Pass, Any, Within]:
        """Search for the scores between which deltas are kept; sum magnitudes where they are rescaled."""
        pairs = zip(spread("density", self.density, num_models), spread("gamma", self.gamma, num_models), strict=True)
        wanted = [(k, count) for k, pair in enumerate(pairs) for count in counts(num_elements, *pair)]
        cuts = yield from find_cuts(self.scores, (), wanted, num_elements)
        ranges = tuple(zip(cuts[::2], cuts[1::2], strict=True))
        kept = Within(ranges=ranges, scores=self.scores, factors=(1.0,) * num_models)
        return (yield from rescaled_to_l1(kept)) if self.rescale == "l1" else kept


def trim(density: PerModel, *, rescale: Rescale = "none", scores: DeltaScores = magnitudes) -> Ranked:
    """Keep the `floor(density·N)` deltas of each model with the largest scores.

    Args:
        rescale: Leave the kept as they are (none), or give them the L1 norm of all (l1).
    """
    return Ranked(density=as_tuple(density), gamma=(0.0,), rescale=rescale, scores=scores)


def band(density: PerModel, gamma: PerModel, *, rescale: Rescale = "none") -> Ranked:
    """Keep `floor(density·N)` deltas of each model, below the `gamma·N` that are the largest.

    Fewer outliers are dropped where they would cut into the density.
    """
    return Ranked(density=as_tuple(density), gamma=as_tuple(gamma), rescale=rescale, scores=magnitudes)
