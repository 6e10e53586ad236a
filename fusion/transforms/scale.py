"""`scale(λ)`, what a chain ends with, and the maps that add deltas with coefficients and select nothing."""

from __future__ import annotations

from dataclasses import dataclass

from array_api_compat import array_namespace

from ..arithmetic.passes import Fused, Map
from ..arithmetic.tile import Tile
from .merge import weighted_sum


@dataclass(frozen=True)
class Scale:
    """The strength λ with which a merged delta is added to the base."""

    strength: float


def scale(strength: float) -> Scale:
    """Return the end of a chain: `base + λ·merged`."""
    return Scale(strength)


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
    return Fused(values=values, kept=(delta != 0) & (scale != 0))


def add_weighted(tile: Tile, coefficients: tuple[float, ...]) -> Fused:
    """Return `base + Σ_k c_k·δ_k`; the bits of the one model that has a part, where its coefficient is 1."""
    xp = array_namespace(tile.base)
    parts = [k for k, coefficient in enumerate(coefficients) if coefficient != 0]
    kept = xp.zeros(tile.base.shape, dtype=xp.bool, device=tile.base.device)
    for k in parts:
        kept = kept | (tile.deltas[k] != 0)
    if not parts:
        values = tile.base
    elif len(parts) == 1 and coefficients[parts[0]] == 1:
        values = tile.tuned[parts[0]]
    else:
        moved = weighted_sum([tile.deltas[k] for k in parts], [coefficients[k] for k in parts])
        values = xp.where(kept, tile.base + moved, tile.base)
    return Fused(values=values, kept=kept)


def scaling(coefficients: tuple[float, ...]) -> Map:
    """Return the map that adds `c_k·δ_k` for each model: one model has a function, and a kernel, of its own."""
    if len(coefficients) == 1:
        return Map(function=add_scaled, arguments=coefficients)
    return Map(function=add_weighted, arguments=(coefficients,))
