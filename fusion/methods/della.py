"""DELLA: drop deltas at random, small ones rather than large ones of the same row; then TIES' election and mean.

    q_i = (density − ε) + 2ε·(r_i − 1)/(n − 1)      r_i the rank of |δ_i| in its row of n, 1 for the smallest
    δ̂_i = M_i·δ_i/q_i,  M_i ~ Bernoulli(q_i)        MagPrune
    W   = W_pre + λ·Σ_{k agrees} w_k·δ̂_k / Σ_{k agrees} w_k

Deep et al., DELLA-Merging, 2024 (arXiv:2406.11617): its p is `1 − density`, its window 2ε. mergekit rescales to the L1
norm of before in place of `1/q` (`--rescale l1`). Of equal magnitudes the first has the lower rank.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from array_api_compat import array_namespace

from ..arithmetic.elect import Election, Merging
from ..arithmetic.group import Group
from ..arithmetic.passes import Fused, Map, Pass, Reduction
from ..arithmetic.sums import block_sums
from ..arithmetic.tile import Tile
from ..errors import MethodError
from .checks import as_tuple, at_least_zero, each, finite, fraction, one_of, spread
from .dare import Rescale
from .method import Method, PerModel, Region
from .task_arithmetic import scaling
from .trim import identity_of, magnitudes, merge_kept

Keep = tuple[float, float]  # density, ε
PLACES = 1 << 32


def keep_probability(magnitude: Any, width: int, density: float, epsilon: float) -> Any:
    """Return q of each element, from the rank of its magnitude within its row; float32, shape (n,)."""
    xp = array_namespace(magnitude)
    if density == 1:
        return xp.ones(magnitude.shape, dtype=xp.float32, device=magnitude.device)
    ranks = _ranks(xp.reshape(magnitude, (-1, width)), xp)
    share = xp.astype(ranks, xp.float64) / (width - 1) if width > 1 else xp.full(ranks.shape, 0.5, dtype=xp.float64)
    return xp.reshape(xp.astype((density - epsilon) + 2 * epsilon * share, xp.float32), (-1,))


def _ranks(rows: Any, xp: Any) -> Any:
    """Return each element's rank within its row, from 0; of equals the first is lower."""
    if rows.dtype == xp.float64 or rows.shape[1] > PLACES:
        return xp.argsort(xp.argsort(rows, axis=1, stable=True), axis=1, stable=True)
    # The bits of a magnitude are ordered as it is. With its place below them all keys differ, and any sort is stable.
    places = xp.arange(rows.shape[1], dtype=xp.int64, device=rows.device)
    keys = xp.astype(rows.view(xp.int32), xp.int64) * PLACES + places
    return xp.argsort(xp.sort(keys, axis=1, stable=False) % PLACES, axis=1, stable=False)


def pruned(tile: Tile, keeps: tuple[Keep, ...], *, by_probability: bool) -> list[Any]:
    """Return each model's deltas, zero where they were dropped; the others divided by q if asked for."""
    xp = array_namespace(tile.base)
    found = []
    for k, (magnitude, (density, epsilon)) in enumerate(zip(magnitudes(tile), keeps, strict=True)):
        q = keep_probability(magnitude, tile.grain, density, epsilon)
        kept = tile.draw(q, model=k)
        delta = tile.deltas[k] / xp.where(kept, q, xp.ones_like(q)) if by_probability else tile.deltas[k]
        found.append(xp.where(kept, delta, xp.zeros_like(delta)))
    return found


def l1_pruned(tile: Tile, keeps: tuple[Keep, ...]) -> Any:
    """Return block sums of |δ|, then of those that are kept, a row a model."""
    xp = array_namespace(tile.base)
    rows = [*tile.deltas, *pruned(tile, keeps, by_probability=False)]
    return xp.stack([block_sums(xp.abs(row)) for row in rows])


def prune_and_merge(
    tile: Tile, keeps: tuple[Keep, ...], factors: tuple[float, ...] | None, merging: Merging, scale: float
) -> Fused:
    """Return the merge of the deltas that are kept, divided by q where there are no factors."""
    deltas = pruned(tile, keeps, by_probability=factors is None)
    if factors is None and all(density == 1 for density, _ in keeps):
        factors = (1.0,) * len(keeps)
    return merge_kept(tile, deltas, factors, merging, scale)


def check_window(density: PerModel, epsilon: PerModel) -> None:
    """Raise MethodError unless all probabilities lie in (0, 1)."""
    each("density", density, fraction)
    each("epsilon", epsilon, at_least_zero)
    num_models = max(len(as_tuple(density)), len(as_tuple(epsilon)))
    for keep, half in zip(spread("density", density, num_models), spread("epsilon", epsilon, num_models), strict=True):
        if 0 < keep < 1 and not 0 < keep - half <= keep + half < 1:
            raise MethodError(f"density {keep:g} with epsilon {half:g} gives probabilities outside (0, 1)")


def pruning(keeps: tuple[Keep, ...], merging: Merging, scale: float, rescale: Rescale) -> Generator[Pass, Any, Map]:
    """Return the map that prunes by rank and chance, and merges."""
    factors = None if rescale == "probability" else (1.0,) * len(keeps)
    if rescale == "l1":
        sums: np.ndarray = yield Pass(function=l1_pruned, arguments=(keeps,))
        before, after = np.split(sums, 2)
        factors = tuple(float(b / a) if a else 1.0 for b, a in zip(before, after, strict=True))
    return Map(function=prune_and_merge, arguments=(keeps, factors, merging, scale))


@dataclass(frozen=True, kw_only=True)
class Della(Method):
    """Drop deltas at random, the small ones more often, elect signs, and average the models that agree.

    Attributes:
        density: Fraction that is kept on average, in [0, 1]. One for each model, or one for all.
        epsilon: Half of the window of keep probabilities around the density.
        scale: λ, the strength of what is kept.
        weights: w, one for each model, separated by commas, or one for all.
        election: Whether the votes are `weighted`, or counted `unweighted` by the deltas alone.
        normalize: Divide by the sum of the agreeing weights.
        rescale: Survivors times `1/q` (probability), to the L1 norm of before (l1), or not at all (none).
    """

    density: PerModel = 0.3
    epsilon: PerModel = 0.15
    scale: float = 1.0
    weights: PerModel = 1.0
    election: Election = "weighted"
    normalize: bool = True
    rescale: Rescale = "probability"

    name: ClassVar[str] = "della"
    title: ClassVar[str] = "DELLA"
    source: ClassVar[str] = "arXiv:2406.11617"
    random: ClassVar[bool] = True
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights", "density", "epsilon")

    def __post_init__(self) -> None:
        check_window(self.density, self.epsilon)
        at_least_zero("scale", self.scale)
        each("weights", self.weights, finite)
        one_of("election", self.election, get_args(Election))
        one_of("rescale", self.rescale, get_args(Rescale))

    @property
    def merging(self) -> Merging:
        """How the models' deltas become one."""
        return Merging.elected(as_tuple(self.weights), self.election, normalize=self.normalize)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is kept, the tuned model where all is."""
        return identity_of(self.scale, self.merging, as_tuple(self.density))

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return `row`: ranks are within one."""
        return "row"

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (only `l1` looks at the tensor)
        """Return the map; sum the deltas first where they are rescaled to their L1 norm."""
        weights = as_tuple(self.weights)
        if self.identity == "base":
            return scaling((0.0,) * len(weights))
        options = [spread(o, getattr(self, o), len(weights)) for o in ("density", "epsilon")]
        return (yield from pruning(tuple(zip(*options, strict=True)), self.merging, self.scale, self.rescale))
