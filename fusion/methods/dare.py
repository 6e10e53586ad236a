"""DARE: drop deltas at random with one probability, rescale the survivors by `1/(1 − p)`.

Yu et al., Language models are super Mario, ICML 2024 (arXiv:2311.03099); eq. 6 of AdaDARE-γ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from array_api_compat import array_namespace

from ..tile import Tile
from .checks import at_least_zero, fraction
from .method import Fused, Map, Method, Reduction
from .task_arithmetic import add_scaled


def drop_and_rescale(tile: Tile, keep: float, scale: float) -> Fused:
    """Return `base + scale·δ/keep` where an element is kept, else the base's bits.

    Args:
        keep: `1 − p`, in (0, 1).
    """
    xp = array_namespace(tile.base)
    delta = tile.deltas[0]
    kept = tile.draw(xp.asarray(keep, dtype=xp.float32, device=tile.base.device)) & (delta != 0)
    return Fused(values=xp.where(kept, tile.base + scale * (delta / keep), tile.base), kept=kept)


@dataclass(frozen=True, kw_only=True)
class Dare(Method):
    """Drop deltas at random with one probability and rescale the survivors.

    Attributes:
        sparsity: p, the probability of being dropped, in [0, 1]; 1 is the base.
        scale: λ, the strength of what is kept.
    """

    sparsity: float = 0.9
    scale: float = 1.0

    name: ClassVar[str] = "dare"
    title: ClassVar[str] = "DARE"
    source: ClassVar[str] = "arXiv:2311.03099"
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction("sparsity", self.sparsity)
        at_least_zero("scale", self.scale)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base at scale 0 or sparsity 1; the tuned model at sparsity 0 and scale 1."""
        if self.scale == 0 or self.sparsity == 1:
            return "base"
        return "tuned" if self.sparsity == 0 and self.scale == 1 else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (nothing need be known of the tensor)
        """Return the map at once."""
        yield from ()
        if self.identity == "base":
            return Map(function=add_scaled, arguments=(0.0,))
        if self.sparsity == 0:
            return Map(function=add_scaled, arguments=(self.scale,))
        return Map(function=drop_and_rescale, arguments=(1 - self.sparsity, self.scale))
