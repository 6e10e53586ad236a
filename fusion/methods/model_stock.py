"""Model Stock: how far to go from the base to the average of fine-tunes, told by the angle between their deltas.

    t = K·cos θ / (1 + (K − 1)·cos θ),    W = t·mean_k W_k + (1 − t)·W_pre

θ is the angle between two deltas, its cosine averaged over all pairs. Jang et al., Model Stock, ECCV 2024
(arXiv:2403.19522). With `filter_wise` each row has an angle of its own. Where the denominator vanishes (deltas that
point away from each other) there is no estimate, and the base is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from ..arithmetic.group import Group, Region
from ..arithmetic.passes import Fused, Map, Pass, Reduction
from ..arithmetic.span import LinearSpan, basis_products
from ..arithmetic.sums import beside, wide
from ..arithmetic.tile import Tile
from .combine import combination
from .method import Method

SINGULAR = 1e-6


def ratio(cosine: Any, num_models: int, xp: Any) -> Any:
    """Return t for a mean cosine, 0 where it has no estimate."""
    denominator = 1 + (num_models - 1) * cosine
    singular = xp.abs(denominator) < SINGULAR
    return xp.where(singular, xp.zeros_like(cosine), num_models * cosine / xp.where(singular, 1.0, denominator))


def stock_rows(tile: Tile) -> Fused:
    """Return the stock of each row of a tile of whole rows."""
    xp = array_namespace(tile.base)
    deltas = [xp.reshape(wide(delta), (-1, tile.grain)) for delta in tile.deltas]
    norms = [xp.sqrt(xp.sum(delta * delta, axis=1, keepdims=True)) for delta in deltas]
    cosines = []
    for i, one in enumerate(deltas):
        for j in range(i + 1, len(deltas)):
            product = norms[i] * norms[j]
            safe = xp.where(product > 0, product, xp.ones_like(product))
            cosines.append(xp.sum(one * deltas[j], axis=1, keepdims=True) / safe)
    cosine = xp.clip(sum(cosines) / len(cosines), -1, 1)
    mean = sum(deltas) / len(deltas)
    moved = xp.reshape(ratio(cosine, len(deltas), xp) * mean, (-1,))
    values, kept = beside(wide(tile.base) + moved, tile.base), beside(moved != 0, tile.base, xp.bool)
    return Fused(values=xp.where(kept, values, tile.base), kept=kept)


@dataclass(frozen=True, kw_only=True)
class ModelStock(Method):
    """Go from the base towards the average of two or more fine-tunes; their angle gives the distance.

    Attributes:
        filter_wise: Use an angle for each row, not one for each tensor.
    """

    filter_wise: bool = False

    name: ClassVar[str] = "model-stock"
    title: ClassVar[str] = "Model Stock"
    source: ClassVar[str] = "arXiv:2403.19522"
    min_models: ClassVar[int] = 2
    max_models: ClassVar[int | None] = None

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return `row` where each has its own angle."""
        return "row" if self.filter_wise else "element"

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the products tell all)
        """Take the inner products; return the combination."""
        if self.filter_wise:
            return Map(function=stock_rows)
        span: LinearSpan = yield Pass(function=basis_products, combine=LinearSpan.of)
        deltas = span.deltas()
        pairs = [(one, other) for i, one in enumerate(deltas) for other in deltas[i + 1 :]]
        cosine = float(np.mean([span.cosine(one, other) for one, other in pairs]))
        t = float(ratio(np.asarray(cosine), len(deltas), np))
        return combination(span.base + t * np.mean(deltas, axis=0), {"cosine": cosine, "ratio": t})
