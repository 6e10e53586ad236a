"""Maps that add up base and deltas with coefficients: what all methods that work in the models' span end with."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace

from ..arithmetic.passes import Fused, Map
from ..arithmetic.span import Vector
from ..arithmetic.tile import Tile
from ..transforms.merge import weighted_sum
from ..transforms.scale import scaling


def combine(tile: Tile, base: float, coefficients: tuple[float, ...]) -> Fused:
    """Return `c_0·base + Σ_k c_k·δ_k`."""
    xp = array_namespace(tile.base)
    differs = xp.zeros(tile.base.shape, dtype=xp.bool, device=tile.base.device)
    for delta in tile.deltas:
        differs = differs | (delta != 0)
    return Fused(values=base * tile.base + weighted_sum(tile.deltas, coefficients), kept=differs)


def combination(vector: Vector, figures: dict[str, float] | None = None) -> Map:
    """Return the map of a combination; a base that counts once keeps its bits where no delta is added."""
    base, *deltas = (float(c) for c in vector)
    if np.isclose(base, 1, rtol=0, atol=1e-12):
        found = scaling(tuple(deltas))
        return Map(function=found.function, arguments=found.arguments, figures=figures or {})
    return Map(function=combine, arguments=(base, tuple(deltas)), figures=figures or {})
