"""Task arithmetic: `W = W_pre + λ·Σ_k w_k·δ_k`.

Ilharco et al., Editing models with task arithmetic, ICLR 2023 (arXiv:2212.04089).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from array_api_compat import array_namespace

from ..arithmetic.elect import weighted_sum
from ..arithmetic.passes import Fused, Map, Reduction
from ..arithmetic.tile import Tile
from ..errors import MethodError
from .checks import as_tuple, at_least_zero, each, finite
from .method import Method, PerModel


def add_scaled(tile: Tile, scale: float) -> Fused:
    """Return `base + scale·δ`; the bits of the base at scale 0 and of the tuned model at scale 1.

    An element whose δ is zero keeps the base's bits, the sign of a zero included.
    """
    xp = array_namespace(tile.base)
    delta = tile.deltas[0]
    if scale == 1:
        values = tile.tuned[0]
    elif scale == 0:
        values = tile.base
    else:
        values = xp.where(delta == 0, tile.base, tile.base + scale * delta)
    return Fused(values=values, kept=delta != 0)


def add_weighted(tile: Tile, coefficients: tuple[float, ...]) -> Fused:
    """Return `base + Σ_k c_k·δ_k`; the bits of the one model that has a part, where its coefficient is 1."""
    xp = array_namespace(tile.base)
    parts = [k for k, coefficient in enumerate(coefficients) if coefficient != 0]
    kept = xp.zeros(tile.base.shape, dtype=xp.bool, device=tile.base.device)
    for k in parts:
        kept = kept | (tile.deltas[k] != 0)
    if not parts:
        values = tile.base
    elif len(parts) == 1 and coefficients[parts[0]] == 1:
        values = tile.tuned[parts[0]]
    else:
        moved = weighted_sum([tile.deltas[k] for k in parts], [coefficients[k] for k in parts])
        values = xp.where(kept, tile.base + moved, tile.base)
    return Fused(values=values, kept=kept)


def scaling(coefficients: tuple[float, ...]) -> Map:
    """Return the map that adds `c_k·δ_k` for each model: one model has a function, and a kernel, of its own."""
    if len(coefficients) == 1:
        return Map(function=add_scaled, arguments=coefficients)
    return Map(function=add_weighted, arguments=(coefficients,))


def identity_of(coefficients: tuple[float, ...]) -> Literal["base", "tuned"] | None:
    """Return the input whose bits `base + Σ_k c_k·δ_k` has: the base's, the first tuned model's, or None."""
    if not any(coefficients):
        return "base"
    return "tuned" if coefficients[0] == 1 and not any(coefficients[1:]) else None


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Method):
    """Add the deltas, each with its weight, scaled by λ; 0.5 is the interpolation half way.

    Attributes:
        scale: λ; for one model 0 is the base, 1 the tuned model, 0.5 the interpolation half way.
        weights: w, one for each model, separated by commas, or one for all. A negative weight takes a task away.
        normalize: Divide the weights by their sum.
    """

    scale: float = 1.0
    weights: PerModel = 1.0
    normalize: bool = False

    name: ClassVar[str] = "task-arithmetic"
    title: ClassVar[str] = "task arithmetic"
    source: ClassVar[str] = "arXiv:2212.04089"
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        at_least_zero("scale", self.scale)
        each("weights", self.weights, finite)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """`λ·w_k`, normalised where that is asked for."""
        weights = as_tuple(self.weights)
        total = sum(weights) if self.normalize and any(weights) else 1.0
        if total == 0:
            raise MethodError("weights that add up to 0 cannot be normalised")
        return tuple(self.scale * weight / total for weight in weights)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is added, the tuned model where it is added whole."""
        return identity_of(self.coefficients)

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (nothing need be known of the tensor)
        """Return the map at once."""
        yield from ()
        return scaling(self.coefficients)
