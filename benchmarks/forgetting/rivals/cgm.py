"""CGM: base and fine-tune are mixed parameter by parameter by what either's loss would mind.

    soft:  W = W_pre + f/(f + α·f₀)·δ
    hard:  in each row the share K of the elements with the smallest (f − α·f₀)·δ² goes back to the base

Yang et al., Curvature-Guided Mixing for MLLM Adaptation (arXiv:2606.24963). f and f₀ are the diagonal Fisher
information, E[g²], of the fine-tune on the target's samples and of the base on general ones: `measure.py fisher`. Where
both are zero base and fine-tune count as 1 to α.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from array_api_compat import array_namespace
from sculpt.fusion.arithmetic.group import Group, Region
from sculpt.fusion.arithmetic.matrices import host
from sculpt.fusion.arithmetic.passes import Fused, Map, Reduction
from sculpt.fusion.arithmetic.two_sided import mean_squares
from sculpt.fusion.methods import Method


@dataclass(frozen=True, kw_only=True)
class Cgm(Method):
    """Mix base and fine-tune by their Fisher information.

    Attributes:
        form: `soft` or `hard`.
        alpha: α, how much the base's counts.
        reverted: K, the share of a row that goes back in the hard form.
    """

    form: Literal["soft", "hard"] = "soft"
    alpha: float = 1.0
    reverted: float = 0.5

    name: ClassVar[str] = "cgm"
    title: ClassVar[str] = "CGM"
    source: ClassVar[str] = "arXiv:2606.24963"
    uses_curvature: ClassVar[bool] = True
    bytes_per_element: ClassVar[int] = 256

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return `row` where whole rows are chosen from."""
        return "row" if self.form == "hard" else "element"

    def prepare(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """Return f and α·f₀ of every element."""
        means = (mean_squares(group, one, 0.0) for one in (group.target, group.base))
        tuned, base = (np.broadcast_to(one.of(one.terms), group.shape).reshape(-1) for one in means)
        return tuned, self.alpha * base

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002
        """Return the map at once."""
        yield from ()
        if self.form == "soft":
            return Map(function=mixed, arguments=(self.alpha,))
        return Map(function=chosen, arguments=(self.reverted,))


def mixed(tile: Any, alpha: float) -> Fused:
    """Return the soft mixture of a tile."""
    tuned, base = _information(tile)
    both = tuned + base
    part = np.divide(tuned, both, out=np.full(both.shape, 1 / (1 + alpha)), where=both > 0)
    return _made(tile, part)


def chosen(tile: Any, reverted: float) -> Fused:
    """Return whole rows with their least useful deltas taken back; of equal ones the first go."""
    tuned, base = _information(tile)
    delta = host(tile.deltas[0]).reshape(-1, tile.grain)
    score = (tuned - base).reshape(delta.shape) * delta.astype(np.float64) ** 2
    order = np.argsort(score, axis=1, kind="stable")[:, : int(reverted * tile.grain)]
    kept = np.ones(delta.shape)
    np.put_along_axis(kept, order, 0, axis=1)
    return _made(tile, kept.reshape(-1))


def _information(tile: Any) -> tuple[np.ndarray, np.ndarray]:
    part = slice(tile.start, tile.start + tile.base.shape[0])
    return tile.prepared[0][part], tile.prepared[1][part]


def _made(tile: Any, part: np.ndarray) -> Fused:
    """Return the base and a part of each delta, the fine-tune's bits where that is all."""
    xp, delta = array_namespace(tile.base), tile.deltas[0]
    share = xp.asarray(part.astype(host(delta).dtype), device=tile.base.device)
    values = xp.where(share == 1, tile.tuned[0], xp.where(share == 0, tile.base, tile.base + share * delta))
    return Fused(values=values, kept=(share > 0) & (delta != 0))
