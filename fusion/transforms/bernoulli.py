"""`bernoulli(sparsity)` drops each delta with one probability; the draws of each model are its own.

    δ̂_k = M_k·δ_k/(1 − p_k),  M_k ~ Bernoulli(1 − p_k)

DARE's drop and rescale (Yu et al., arXiv:2311.03099). mergekit rescales to the L1 norm that the deltas had before,
which on small tensors is far from `1/(1 − p)`, and infinitely far where everything was dropped.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import array_namespace

from ..arithmetic.passes import Pass
from ..arithmetic.per_model import PerModel, as_tuple, spread
from ..arithmetic.tile import Tile
from .chain import Kept, Selector, rescaled_to_l1

DropRescale = Literal["probability", "l1", "none"]


@dataclass(frozen=True, kw_only=True)
class Drawn(Kept):
    """The deltas that each model's own draws keep, with probability `1 − p`."""

    keeps: tuple[float, ...]

    def deltas(self, tile: Tile) -> list[Any]:
        """Return each model's deltas, zero where its draws drop them."""
        xp, found = array_namespace(tile.base), []
        for k, (delta, keep) in enumerate(zip(tile.deltas, self.keeps, strict=True)):
            kept = tile.draw(xp.asarray(keep, dtype=xp.float32, device=tile.base.device), model=k)
            found.append(xp.where(kept, delta, xp.zeros_like(delta)))
        return found


@dataclass(frozen=True, kw_only=True)
class Bernoulli(Selector):
    """Each delta of model k with probability `1 − p_k`."""

    sparsity: tuple[float, ...]
    rescale: DropRescale

    @property
    def fractions(self) -> tuple[float, ...]:
        """`1 − p`."""
        return tuple(1 - p for p in self.sparsity)

    def settle(self, num_models: int, num_elements: int) -> Generator[Pass, Any, Drawn]:  # noqa: ARG002
        """Sum magnitudes where the survivors are rescaled to an L1 norm; else no look at the tensor is needed."""
        keeps = spread("sparsity", self.fractions, num_models)
        by_probability = self.rescale == "probability"
        kept = Drawn(keeps=keeps, factors=tuple(1 / keep if by_probability and keep else 1.0 for keep in keeps))
        return (yield from rescaled_to_l1(kept)) if self.rescale == "l1" else kept


def bernoulli(sparsity: PerModel, *, rescale: DropRescale = "probability") -> Bernoulli:
    """Drop each delta of a model with probability p.

    Args:
        rescale: Survivors times `1/(1 − p)` (probability), to the L1 norm of before (l1), or not at all (none).
    """
    return Bernoulli(sparsity=as_tuple(sparsity), rescale=rescale)
