"""NearSwap: take over what is near, and less and less of what is further away.

    W = W_a + min(1, t/|δ|)·δ

As published by alchemonaut (https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001) and in mergekit: an element
that differs by less than t is swapped, every other one moves by t towards the second model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from array_api_compat import array_namespace

from ..arithmetic.passes import Fused, Map, Reduction
from ..arithmetic.tile import Tile
from ..transforms.scale import add_scaled
from .checks import at_least_zero
from .method import Method


def move_at_most(tile: Tile, t: float) -> Fused:
    """Return the tuned model's bits where it is within t of the base, else the base moved by t towards it."""
    xp = array_namespace(tile.base)
    delta = tile.deltas[0]
    near = xp.abs(delta) <= t
    return Fused(values=xp.where(near, tile.tuned[0], tile.base + t * xp.sign(delta)), kept=delta != 0)


@dataclass(frozen=True, kw_only=True)
class NearSwap(Method):
    """Move every element towards the second model, by at most t.

    Attributes:
        t: Largest move of an element; 0 gives the first model.
    """

    t: float = 1e-3

    name: ClassVar[str] = "nearswap"
    title: ClassVar[str] = "NearSwap"
    source: ClassVar[str] = "alchemonaut, QuartetAnemoi-70B"

    def __post_init__(self) -> None:
        at_least_zero("t", self.t)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base at t = 0."""
        return "base" if self.t == 0 else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (nothing need be known of the tensor)
        """Return the map at once."""
        yield from ()
        if self.t == 0:
            return Map(function=add_scaled, arguments=(0.0,))
        return Map(function=move_at_most, arguments=(self.t,))
