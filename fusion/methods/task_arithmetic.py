"""Task arithmetic: `W = W_pre + Σ_k λ_k·δ_k`.

Ilharco et al., Editing models with task arithmetic, ICLR 2023 (arXiv:2212.04089).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from array_api_compat import array_namespace

from ..tile import Tile
from .checks import at_least_zero
from .method import Fused, Map, Method, Reduction


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


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Method):
    """Add the delta scaled by λ; 0.5 is the interpolation half way.

    Attributes:
        scale: λ; 0 is the base, 1 the tuned model, 0.5 the interpolation half way.
    """

    scale: float = 1.0

    name: ClassVar[str] = "task-arithmetic"
    title: ClassVar[str] = "task arithmetic"
    source: ClassVar[str] = "arXiv:2212.04089"

    def __post_init__(self) -> None:
        at_least_zero("scale", self.scale)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base at 0, the tuned model at 1."""
        if self.scale == 0:
            return "base"
        return "tuned" if self.scale == 1 else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (nothing need be known of the tensor)
        """Return the map at once."""
        yield from ()
        return Map(function=add_scaled, arguments=(self.scale,))
