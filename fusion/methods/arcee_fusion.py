"""Arcee Fusion: take over the elements whose change stands out, leave the others.

    I_ij = |δ_ij|·KL(softmax(W_sft,i) + ε ‖ softmax(W_pre,i) + ε)     softmax over a row, ε = 1e-8
    W    = W_sft where I >= median(I) + 1.5·(Q3(I) − Q1(I)), else W_pre

As published in mergekit (Arcee AI). Quartiles are exact, whatever the size of the tensor; mergekit draws a million
elements of a larger one, unseeded. The divergence is computed in float64: in float32 that of near softmaxes is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from ..arithmetic.group import Group, Region
from ..arithmetic.passes import Fused, Map, Pass, Reduction
from ..arithmetic.ranks import find_cuts
from ..arithmetic.sums import beside, wide
from ..arithmetic.tile import Tile
from .method import Method

EPSILON = 1e-8


def _softmax(rows: Any, xp: Any) -> Any:
    powers = xp.exp(rows - xp.max(rows, axis=1, keepdims=True))
    return powers / xp.sum(powers, axis=1, keepdims=True)


def _rows(tile: Tile, xp: Any) -> tuple[Any, Any]:
    base, tuned = (xp.reshape(wide(side), (-1, tile.grain)) for side in (tile.base, tile.tuned[0]))
    return base, tuned


def divergences(tile: Tile) -> Any:
    """Return the divergence of each row of a tile of whole rows, shape (1, num_rows)."""
    xp = array_namespace(tile.base)
    base, tuned = _rows(tile, xp)
    p, q = _softmax(tuned, xp) + EPSILON, _softmax(base, xp) + EPSILON
    return xp.clip(xp.sum(p * xp.log(p / q), axis=1), min=0.0)[None, :]


def importance(tile: Tile, divergence: np.ndarray) -> list[Any]:
    """Return I of each element of a tile of whole rows, the one stream of scores.

    Args:
        divergence: Of every row of the tensor.
    """
    xp = array_namespace(tile.base)
    base, tuned = _rows(tile, xp)
    first = tile.start // tile.grain
    own = xp.asarray(divergence[first : first + base.shape[0]], device=base.device)
    return [xp.reshape(xp.abs(tuned - base) * own[:, None], (-1,))]


def take_important(tile: Tile, divergence: np.ndarray, threshold: float) -> Fused:
    """Return the tuned model's bits where the importance reaches the threshold, else the base's."""
    xp = array_namespace(tile.base)
    important = importance(tile, divergence)[0] >= threshold
    kept = beside(important, tile.base, xp.bool) & (tile.deltas[0] != 0)
    return Fused(values=xp.where(kept, tile.tuned[0], tile.base), kept=kept)


def _all_rows(tiles: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(tiles, axis=1)[0]


@dataclass(frozen=True, kw_only=True)
class ArceeFusion(Method):
    """Take the elements of the fine-tune whose change is important, by quartiles of the importance."""

    name: ClassVar[str] = "arcee-fusion"
    title: ClassVar[str] = "Arcee Fusion"
    source: ClassVar[str] = "mergekit 0.1"

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return `row`: the softmax runs over one."""
        return "row"

    def reduce(self, num_elements: int) -> Reduction:
        """Find the divergence of each row, and the quartiles of the importance."""
        divergence: np.ndarray = yield Pass(function=divergences, combine=_all_rows)
        places = [int(q * (num_elements - 1)) for q in (0.25, 0.5, 0.75)]
        wanted = [(0, num_elements - place) for place in places]
        cuts = yield from find_cuts(importance, (divergence,), wanted, num_elements)
        first, median, third = (max(cut.value, 0.0) for cut in cuts)
        threshold = median + 1.5 * (third - first)
        return Map(function=take_important, arguments=(divergence, threshold), figures={"threshold": threshold})
