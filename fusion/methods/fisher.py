"""Fisher averaging: each element is averaged by how much each model's loss would mind a change of it.

    W = Σ_k w_k·F_k·W_k / Σ_k w_k·F_k

Matena & Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022 (arXiv:2111.09832), where F = E[g²], the
diagonal of the Fisher information, takes gradients. Calibration measures none: here F is the mean square of the
element's input, E[x²], which is the diagonal of the layer's own curvature. The base is where deltas start from, and
is not averaged. An element whose input no model saw is averaged by the weights alone; the authors put a floor of 1e-6
under F instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from array_api_compat import array_namespace

from ..arithmetic.average import shares
from ..arithmetic.group import Group
from ..arithmetic.passes import Fused, Map, Reduction
from ..arithmetic.per_element import PerElement
from ..arithmetic.per_model import PerModel, as_tuple
from ..arithmetic.tile import Tile
from .checks import averages
from .method import Method


def add_shares(tile: Tile) -> Fused:
    """Return `W_pre + Σ_k share_k·δ_k`; the first model's bits where it has all of the share."""
    xp = array_namespace(tile.base)
    start, count = tile.start, tile.base.shape[0]
    moved = xp.zeros_like(tile.base)
    kept = xp.zeros(tile.base.shape, dtype=xp.bool, device=tile.base.device)
    values = None
    for share, tuned, delta in zip(tile.prepared, tile.tuned, tile.deltas, strict=True):
        part = xp.astype(xp.asarray(share.expand(start, count), device=tile.base.device), delta.dtype)
        alone = part == 1
        values = xp.where(alone, tuned, tile.base if values is None else values)
        moved = moved + xp.where(alone, xp.zeros_like(delta), part * delta)
        kept = kept | ((delta != 0) & (part != 0))
    # Elsewhere a base of -0 would become +0.
    return Fused(values=xp.where(kept, values + moved, tile.base), kept=kept)


@dataclass(frozen=True, kw_only=True)
class Fisher(Method):
    """Average models element by element, weighted by the mean square of each model's inputs.

    Attributes:
        weights: w, one for each tuned model, separated by commas, or one for all.
    """

    weights: PerModel = 1.0

    name: ClassVar[str] = "fisher"
    title: ClassVar[str] = "Fisher averaging"
    source: ClassVar[str] = "arXiv:2111.09832"
    uses_curvature: ClassVar[bool] = True
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        averages("weights", self.weights)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The tuned model, where it is the only one."""
        return "tuned" if isinstance(self.weights, tuple) and len(self.weights) == 1 else None

    def prepare(self, group: Group) -> tuple[PerElement, ...]:
        """Return the share of each tuned model."""
        return tuple(shares(group, as_tuple(self.weights)))

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (nothing need be known of the tensor)
        """Return the map at once."""
        yield from ()
        return Map(function=add_shares)
