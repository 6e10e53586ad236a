"""AIM: what the base's own activations make much of is held nearer to the base.

    W_:j = W_pre,:j + (1 − (1 − ω)·s_j)·δ_:j,       s = a/max(a),       a_j = E|x_j| over general inputs of the base

Nobari et al., Activation-Informed Merging of Large Language Models, NeurIPS 2025 (arXiv:2502.02421), as released: for
every module with a weight but embeddings. Statistics are those of `measure.py magnitudes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from sculpt.fusion.arithmetic.group import Group
from sculpt.fusion.arithmetic.passes import Fused, Map, Reduction
from sculpt.fusion.arithmetic.per_element import PerElement, per_element
from sculpt.fusion.arithmetic.two_sided import mean_squares
from sculpt.fusion.methods import Method


@dataclass(frozen=True, kw_only=True)
class Aim(Method):
    """Hold what the base's activations make much of nearer to the base.

    Attributes:
        omega: ω, what is left of the delta of the input that is largest.
    """

    omega: float = 0.4

    name: ClassVar[str] = "aim"
    title: ClassVar[str] = "AIM"
    source: ClassVar[str] = "arXiv:2502.02421"
    uses_curvature: ClassVar[bool] = True

    def prepare(self, group: Group) -> PerElement:
        """Return what is left of each element's delta."""
        means = mean_squares(group, group.base, 0.0)  # of magnitudes here: the statistics are what was given
        importance = means.of(means.terms)
        largest = importance.max(initial=0.0)
        share = importance / largest if largest > 0 else np.zeros_like(importance)
        return per_element(1 - (1 - self.omega) * share, group.shape)

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002
        """Return the map at once."""
        yield from ()
        return Map(function=add_parts)


def add_parts(tile: Any) -> Fused:
    """Return the base and the prepared part of each delta."""
    xp = array_namespace(tile.base)
    part = xp.asarray(tile.prepared.expand(tile.start, tile.base.shape[0]), device=tile.base.device)
    delta = tile.deltas[0]
    values = xp.where(part == 1, tile.tuned[0], tile.base + part * delta)
    return Fused(values=values, kept=(delta != 0) & (part != 0))
