"""`magprune(density, ε)` drops deltas at random, small ones rather than large ones of the same row.

    q_i = (density − ε) + 2ε·(r_i − 1)/(n − 1)      r_i the rank of |δ_i| in its row of n, 1 for the smallest
    δ̂_i = M_i·δ_i/q_i,  M_i ~ Bernoulli(q_i)

DELLA's MagPrune (Deep et al., arXiv:2406.11617): its p is `1 − density`, its window 2ε. mergekit rescales to the L1
norm of before in place of `1/q`. Of equal magnitudes the first has the lower rank.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace

from ..arithmetic.group import Region
from ..arithmetic.passes import Pass
from ..arithmetic.per_model import PerModel, as_tuple, spread
from ..arithmetic.sums import beside, wide
from ..arithmetic.tile import Tile
from ..errors import MethodError
from .bernoulli import DropRescale
from .chain import Kept, Selector, rescaled_to_l1
from .trim import magnitudes

PLACES = 1 << 32


def keep_probability(magnitude: Any, width: int, density: float, epsilon: float) -> Any:
    """Return q of each element, from the rank of its magnitude within its row; float32, shape (n,)."""
    xp = array_namespace(magnitude)
    if density == 1:
        return xp.ones(magnitude.shape, dtype=xp.float32, device=magnitude.device)
    ranks = _ranks(xp.reshape(magnitude, (-1, width)), xp)
    share = wide(ranks) / (width - 1) if width > 1 else wide(ranks) + 0.5  # a sole one has rank 0
    return xp.reshape(beside((density - epsilon) + 2 * epsilon * share, magnitude, xp.float32), (-1,))


def _ranks(rows: Any, xp: Any) -> Any:
    """Return each element's rank within its row, from 0; of equals the first is lower."""
    if rows.dtype == xp.float64 or rows.shape[1] > PLACES:
        return xp.argsort(xp.argsort(rows, axis=1, stable=True), axis=1, stable=True)
    # The bits of a magnitude are ordered as it is. With its place below them all keys differ, and any sort is stable.
    places = xp.arange(rows.shape[1], dtype=xp.int64, device=rows.device)
    keys = xp.astype(rows.view(xp.int32), xp.int64) * PLACES + places
    return xp.argsort(xp.sort(keys, axis=1, stable=False) % PLACES, axis=1, stable=False)


@dataclass(frozen=True, kw_only=True)
class MagPruned(Kept):
    """The deltas that each model's own draws keep, each with its q.

    Attributes:
        windows: (density, ε) of each model.
        divided: Whether what is kept is divided by q.
    """

    windows: tuple[tuple[float, float], ...]
    divided: bool

    def deltas(self, tile: Tile) -> list[Any]:
        """Return each model's deltas, zero where they were dropped."""
        xp, found = array_namespace(tile.base), []
        for k, (delta, magnitude, window) in enumerate(zip(tile.deltas, magnitudes(tile), self.windows, strict=True)):
            q = keep_probability(magnitude, tile.grain, *window)
            kept = tile.draw(q, model=k)
            survivors = delta / xp.where(kept, q, xp.ones_like(q)) if self.divided else delta
            found.append(xp.where(kept, survivors, xp.zeros_like(delta)))
        return found


@dataclass(frozen=True, kw_only=True)
class MagPrune(Selector):
    """Each delta with a probability that rises with its rank in the row."""

    region: ClassVar[Region] = "row"

    density: tuple[float, ...]
    epsilon: tuple[float, ...]
    rescale: DropRescale

    def __post_init__(self) -> None:
        for keep, half in self._windows(max(len(self.density), len(self.epsilon))):
            if 0 < keep < 1 and not 0 < keep - half <= keep + half < 1:
                raise MethodError(
                    f"a `density` of {keep:g} with an `epsilon` of {half:g} gives probabilities outside (0, 1)",
                    options=["density", "epsilon"],
                )

    @property
    def fractions(self) -> tuple[float, ...]:
        """The density."""
        return self.density

    def _windows(self, num_models: int) -> tuple[tuple[float, float], ...]:
        options = ("density", self.density), ("epsilon", self.epsilon)
        return tuple(zip(*(spread(option, value, num_models) for option, value in options), strict=True))

    def settle(self, num_models: int, num_elements: int) -> Generator[Pass, Any, MagPruned]:  # noqa: ARG002
        """Sum magnitudes where the survivors are rescaled to an L1 norm; ranks are found row by row."""
        divided = self.rescale == "probability"
        # Where all is kept, q is 1 everywhere: a model that is alone can then be taken as it is.
        factors = None if divided and min(self.density) < 1 else (1.0,) * num_models
        kept = MagPruned(windows=self._windows(num_models), divided=divided, factors=factors)
        return (yield from rescaled_to_l1(kept)) if self.rescale == "l1" else kept


def magprune(density: PerModel, epsilon: PerModel, *, rescale: DropRescale = "probability") -> MagPrune:
    """Keep a delta with probability `density − ε` to `density + ε`, by the rank of its magnitude within its row.

    Args:
        rescale: Survivors times `1/q` (probability), to the L1 norm of before (l1), or not at all (none).

    Raises:
        MethodError: Some probability would lie outside (0, 1).
    """
    return MagPrune(density=as_tuple(density), epsilon=as_tuple(epsilon), rescale=rescale)
