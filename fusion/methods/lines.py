"""LiNeS: deltas are scaled by depth, so that the first layers, which all tasks share, stay near the base.

    W = W_pre + (α + β·l/(L − 1))·Σ_k w_k·δ_k          l = 0, …, L − 1 the number of the layer

Wang et al., LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging, ICLR 2025
(arXiv:2410.17146). Layers are those that names count from 0 on, each stack by itself. What is in none has α, embeddings
and head alike, as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..arithmetic.group import Group
from ..arithmetic.passes import Fused, Map, Reduction
from ..arithmetic.per_model import PerModel, as_tuple
from ..arithmetic.tile import Tile
from ..transforms.scale import add_weighted
from .checks import at_least_zero, each, finite
from .method import Method


def add_by_depth(tile: Tile, weights: tuple[float, ...]) -> Fused:
    """Return `W_pre + s·Σ_k w_k·δ_k`, s being what was prepared for the tensor."""
    return add_weighted(tile, tuple(tile.prepared * weight for weight in weights))


@dataclass(frozen=True, kw_only=True)
class Lines(Method):
    """Add the deltas with a strength that grows evenly from the first layer to the last.

    Attributes:
        alpha: α, the strength in the first layer, and of tensors outside the layers.
        beta: β, how much stronger the last layer is.
        weights: w, one for each tuned model, separated by commas, or one for all.
    """

    alpha: float = 0.5
    beta: float = 0.5
    weights: PerModel = 1.0

    name: ClassVar[str] = "lines"
    title: ClassVar[str] = "LiNeS"
    source: ClassVar[str] = "arXiv:2410.17146"
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        at_least_zero("alpha", self.alpha)
        finite("beta", self.beta)
        each("weights", self.weights, finite)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is added, the tuned model where it is alone and added once in every layer."""
        if not any(as_tuple(self.weights)) or (self.alpha == 0 and self.beta == 0):
            return "base"
        return "tuned" if self.beta == 0 and self.alpha == 1 and self.weights == (1.0,) else None

    def prepare(self, group: Group) -> float:
        """Return the strength of a tensor's layer."""
        return self.alpha + self.beta * group.depth

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the name tells all)
        """Return the map at once."""
        yield from ()
        return Map(function=add_by_depth, arguments=(as_tuple(self.weights),))
