"""DARE: drop deltas at random with one probability, rescale the survivors by `1/(1 − p)`.

    δ̂_k = M_k·δ_k/(1 − p_k),  M_k ~ Bernoulli(1 − p_k)
    W   = W_pre + λ·Σ_k w_k·δ̂_k

Yu et al., Language models are super Mario, ICML 2024 (arXiv:2311.03099); eq. 6 of AdaDARE-γ. Each model has draws of
its own. mergekit calls this `dare_linear` and rescales to the L1 norm that the deltas had before (`rescale: l1`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from array_api_compat import array_namespace

from ..arithmetic.passes import Fused, Map, Reduction
from ..arithmetic.tile import Tile
from ..transforms.bernoulli import bernoulli
from ..transforms.chain import Chain
from ..transforms.merge import total
from ..transforms.scale import scale, scaling
from .options import Dropped, Summed


def drop_and_rescale(tile: Tile, keep: float, scale: float) -> Fused:
    """Return `base + (scale/keep)·δ` where an element is kept, else the base's bits.

    Args:
        keep: `1 − p`, in (0, 1).
    """
    xp = array_namespace(tile.base)
    delta = tile.deltas[0]
    kept = tile.draw(xp.asarray(keep, dtype=xp.float32, device=tile.base.device)) & (delta != 0)
    return Fused(values=xp.where(kept, tile.base + (scale / keep) * delta, tile.base), kept=kept)


@dataclass(frozen=True, kw_only=True)
class Dare(Summed, Dropped):
    """Drop deltas at random with one probability, and rescale the rest."""

    name: ClassVar[str] = "dare"
    title: ClassVar[str] = "DARE"
    source: ClassVar[str] = "arXiv:2311.03099"

    @cached_property
    def chain(self) -> Chain:
        """Drop, add up, scale."""
        summed = total(self.weights, normalize=self.normalize)
        return bernoulli(self.sparsity, rescale=self.rescale) | summed | scale(self.scale)

    def reduce(self, num_elements: int) -> Reduction:
        """Return the chain's map, or where its factors are one number an element, the map that rounds only once."""
        chain = self.chain
        keeps, coefficients = chain.selection.fractions, chain.merging.coefficients(self.scale)
        if self.identity != "base" and min(keeps) == 1:  # nothing is dropped: task arithmetic
            return scaling(coefficients)
        if self.identity != "base" and len(coefficients) == 1 and self.rescale == "probability":
            return Map(function=drop_and_rescale, arguments=(*keeps, *coefficients))
        return (yield from chain.reduce(num_elements))
