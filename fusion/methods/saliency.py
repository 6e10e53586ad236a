"""Saliency: keep exactly the deltas whose loss would hurt the target task most. The deterministic twin of AdaDARE-γ.

    s_i = sqrt(H_ii)·|δ_i|                       as AdaDARE-γ's
    W_i = W_pre,i + λ·δ_i  for the `density` largest s, else W_pre,i

Nothing is random and nothing rescaled: an expected value is given up for less variance. Of equal scores those with the
lowest index are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from array_api_compat import array_namespace

from ..arithmetic.passes import Fused, Map, Reduction
from ..arithmetic.ranks import Cut, find_cuts
from ..arithmetic.tile import Tile
from .adadare import scores
from .checks import at_least_zero, fraction, one_of
from .method import Method, Scope
from .task_arithmetic import add_scaled


def saliencies(tile: Tile) -> list[Any]:
    """Return s, the one stream of scores."""
    return [scores(tile)]


def keep_salient(tile: Tile, cut: Cut, scale: float) -> Fused:
    """Return `base + scale·δ` where s is within the cut, else the base's bits; the tuned model's at scale 1."""
    xp = array_namespace(tile.base)
    delta = tile.deltas[0]
    kept = cut.selects(scores(tile), tile.start) & (delta != 0)
    values = tile.tuned[0] if scale == 1 else tile.base + scale * delta
    return Fused(values=xp.where(kept, values, tile.base), kept=kept)


@dataclass(frozen=True, kw_only=True)
class Saliency(Method):
    """Keep exactly the deltas with the largest `sqrt(H)·|δ|`, as they are.

    Attributes:
        density: Fraction that is kept, in [0, 1]: exactly `floor(density·N)` deltas.
        scale: λ, the strength of what is kept.
        scope: Over what the density is met: each `tensor`, `block`, or the `model`.
    """

    density: float = 0.1
    scale: float = 1.0
    scope: Scope = "tensor"  # pyright: ignore[reportIncompatibleVariableOverride] (an option here)

    name: ClassVar[str] = "saliency"
    title: ClassVar[str] = "saliency"
    source: ClassVar[str] = "sculpt"
    uses_curvature: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction("density", self.density)
        at_least_zero("scale", self.scale)
        one_of("scope", self.scope, get_args(Scope))

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is kept, the tuned model where all is."""
        if self.scale == 0 or self.density == 0:
            return "base"
        return "tuned" if self.density == 1 and self.scale == 1 else None

    def reduce(self, num_elements: int) -> Reduction:
        """Find the smallest score that is kept."""
        if self.identity == "base":
            return Map(function=add_scaled, arguments=(0.0,))
        if self.density == 1:
            return Map(function=add_scaled, arguments=(self.scale,))
        [cut] = yield from find_cuts(saliencies, (), [(0, int(self.density * num_elements))], num_elements)
        return Map(function=keep_salient, arguments=(cut, self.scale), figures={"smallest_kept": cut.value})
