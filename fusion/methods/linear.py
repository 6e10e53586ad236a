"""Weighted average of models: `W = Σ_k w_k·W_k / Σ_k w_k`.

Wortsman et al., Model soups, ICML 2022 (arXiv:2203.05482): the uniform soup is the case of equal weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from array_api_compat import array_namespace

from ..arithmetic.passes import Fused, Map, Reduction
from ..arithmetic.per_model import PerModel, as_tuple
from ..arithmetic.sums import added
from ..arithmetic.tile import Tile
from ..errors import MethodError
from ..transforms.merge import weighted_sum
from .checks import each, finite
from .method import Method


def average(tile: Tile, weights: tuple[float, ...], divisor: float) -> Fused:
    """Return `Σ w_k·W_k / divisor`, the base being the first; the bits of the one model that counts, if it counts 1.

    Where all models agree and the weights add up to 1 that value is kept as it is.
    """
    xp = array_namespace(tile.base)
    models = (tile.base, *tile.tuned)
    differs = xp.zeros(tile.base.shape, dtype=xp.bool, device=tile.base.device)
    for delta in tile.deltas:
        differs = differs | (delta != 0)
    parts = [k for k, weight in enumerate(weights) if weight != 0]
    if len(parts) == 1 and weights[parts[0]] == divisor:
        values = models[parts[0]]
    else:
        values = weighted_sum(models, weights) / divisor
        if added(weights) == divisor:
            values = xp.where(differs, values, tile.base)
    return Fused(values=values, kept=differs)


@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    """Average models with weights; the first model counts like the others.

    Attributes:
        weights: w, one for each model, the first included, separated by commas, or one for all.
        normalize: Divide by the sum of the weights.
    """

    weights: PerModel = 1.0
    normalize: bool = True

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "weighted average"
    source: ClassVar[str] = "arXiv:2203.05482"
    min_models: ClassVar[int] = 0
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        each("weights", self.weights, finite)
        if self.normalize and isinstance(self.weights, tuple) and sum(self.weights) == 0:
            raise MethodError("weights that add up to 0 cannot be normalised")

    @property
    def counts_base(self) -> bool:
        """The base is one of the models."""
        return True

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The one model that has a weight, if it is the first or the second, as it is where it is alone."""
        weights = as_tuple(self.weights)
        if not isinstance(self.weights, tuple) or not (self.normalize or added(weights) == 1):
            return None
        parts = [k for k, weight in enumerate(weights) if weight != 0]
        return "base" if parts == [0] else "tuned" if parts == [1] else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (nothing need be known of the tensor)
        """Return the map at once."""
        yield from ()
        weights = as_tuple(self.weights)
        return Map(function=average, arguments=(weights, added(weights) if self.normalize else 1.0))
