"""Passthrough: one model's tensors as they are, or times a factor; recipes stack layers with it.

W = scale·W_a
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from array_api_compat import array_namespace

from ..arithmetic.passes import Fused, Map, Reduction
from ..arithmetic.tile import Tile
from .checks import finite
from .method import Method


def scaled(tile: Tile, scale: float) -> Fused:
    """Return `scale·base`; its bits at 1."""
    xp = array_namespace(tile.base)
    kept = xp.zeros(tile.base.shape, dtype=xp.bool, device=tile.base.device)
    return Fused(values=tile.base if scale == 1 else scale * tile.base, kept=kept)


@dataclass(frozen=True, kw_only=True)
class Passthrough(Method):
    """Take one model as it is, or scaled: for recipes that stack layers.

    Attributes:
        scale: Factor of every element.
    """

    scale: float = 1.0

    name: ClassVar[str] = "passthrough"
    title: ClassVar[str] = "passthrough"
    source: ClassVar[str] = "mergekit 0.1"
    min_models: ClassVar[int] = 0
    max_models: ClassVar[int | None] = 0

    def __post_init__(self) -> None:
        finite("scale", self.scale)

    @property
    def counts_base(self) -> bool:
        """The base is the model that is taken."""
        return True

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base at scale 1."""
        return "base" if self.scale == 1 else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (nothing need be known of the tensor)
        """Return the map at once."""
        yield from ()
        return Map(function=scaled, arguments=(self.scale,))
