"""SCE: select where models differ most, calculate each model's weight from what is left, erase minority signs.

    S   the `density` elements with the largest variance of δ over the models, of those that have any
    η_k = Σ_S δ_k² / Σ_j Σ_S δ_j²
    W   = W_pre + Σ_{k agrees} η_k·δ_k / Σ_{k agrees} η_k          on S; agreeing with the sign of Σ_k δ_k

Wan et al., FuseChat, 2024 (arXiv:2408.07990), over each tensor. mergekit weighs all alike where the mean squares add up
to less than 1e-6, which in fine-tunes they mostly do; here only where they are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from array_api_compat import array_namespace

from ..arithmetic.passes import Map, Pass, Reduction
from ..arithmetic.ranks import Cut, find_cuts
from ..arithmetic.sums import block_sums, wide
from ..arithmetic.tile import Tile
from ..transforms.chain import Kept, merge_kept
from ..transforms.merge import Merging
from ..transforms.scale import add_scaled
from .checks import fraction
from .method import Method


def variances(tile: Tile) -> list[Any]:
    """Return the variance of δ over the models, the one stream of scores."""
    mean = sum(tile.deltas) / len(tile.deltas)
    return [sum((delta - mean) ** 2 for delta in tile.deltas) / len(tile.deltas)]


def num_differing(tile: Tile) -> Any:
    """Return block sums of how many elements have a variance; shape (1, num_blocks)."""
    xp = array_namespace(tile.base)
    return xp.stack([block_sums(variances(tile)[0] > 0)])


@dataclass(frozen=True, kw_only=True)
class Selected(Kept):
    """The deltas of all models where their variance is within the cut."""

    cut: Cut

    def deltas(self, tile: Tile) -> list[Any]:
        """Return each model's deltas, zero where the variance is not within the cut."""
        xp = array_namespace(tile.base)
        mask = self.cut.selects(variances(tile)[0], tile.start)
        return [xp.where(mask, delta, xp.zeros_like(delta)) for delta in tile.deltas]


def squares(tile: Tile, kept: Selected) -> Any:
    """Return block sums of δ² of what is selected, a row a model."""
    xp = array_namespace(tile.base)
    return xp.stack([block_sums(wide(delta) ** 2) for delta in kept.deltas(tile)])


@dataclass(frozen=True, kw_only=True)
class Sce(Method):
    """Select elements in which models differ, weight each model by its change there, and drop minority signs.

    Attributes:
        density: Fraction of the elements to select, among those in which the models differ; in [0, 1].
    """

    density: float = 0.1

    name: ClassVar[str] = "sce"
    title: ClassVar[str] = "SCE"
    source: ClassVar[str] = "arXiv:2408.07990"
    min_models: ClassVar[int] = 0
    max_models: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        fraction("density", self.density)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is selected."""
        return "base" if self.density == 0 else None

    def reduce(self, num_elements: int) -> Reduction:
        """Find the smallest variance that is selected, then the weights."""
        if self.density == 0:
            return Map(function=add_scaled, arguments=(0.0,))
        cut = Cut(value=-1.0, place=-1)
        if self.density < 1:
            [differing] = yield Pass(function=num_differing)
            [cut] = yield from find_cuts(variances, (), [(0, int(self.density * differing))], num_elements)
        kept = Selected(cut=cut)
        sums: np.ndarray = yield Pass(function=squares, arguments=(kept,))
        total = float(sums.sum())
        weights = tuple((sums / total).tolist()) if total > 0 else (1.0,) * len(sums)
        merging = Merging(weights=weights, election="unweighted", normalize=True)
        return Map(function=merge_kept, arguments=(replace(kept, factors=(1.0,) * len(sums)), merging, 1.0))
