"""Null space: a delta loses what lies in the directions that general inputs use.

    G = U·diag(μ)·Uᵀ,       W = W_pre + δ·U·diag(g)·Uᵀ
    hard: g = 0 for the largest μ that together hold a share of their sum, else 1;      soft: g = 1/(1 + λ·μ/mean(μ))

Hard as in GPM (Saha et al., ICLR 2021, arXiv:2103.09762) and AlphaEdit (Fang et al., ICLR 2025, arXiv:2410.02355), who
cut at a μ. Soft is two-sided curvature with the identity for the target's inputs. Tensors without full statistics are
the fine-tune's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sculpt.fusion.arithmetic.gram import mean_matrix
from sculpt.fusion.arithmetic.group import Group, Region
from sculpt.fusion.arithmetic.matrices import Matrices, Whole, added, delivered, host, whole_of
from sculpt.fusion.arithmetic.passes import Map, Reduction
from sculpt.fusion.arithmetic.row_layout import row_layout
from sculpt.fusion.methods import Method
from sculpt.fusion.transforms.scale import add_scaled


@dataclass(frozen=True, kw_only=True)
class NullSpace(Method):
    """Take out of the delta what lies where the base's own inputs go.

    Attributes:
        form: `hard` or `soft`.
        strength: The share of `hard`, or λ of `soft`.
    """

    form: Literal["hard", "soft"] = "hard"
    strength: float = 0.99

    name: ClassVar[str] = "null-space"
    title: ClassVar[str] = "null space"
    source: ClassVar[str] = "arXiv:2103.09762"
    uses_curvature: ClassVar[bool] = True
    loads_torch: ClassVar[bool] = True
    bytes_per_element: ClassVar[int] = 32
    bytes_per_input_pair: ClassVar[int] = 48

    def region(self, group: Group) -> Region:
        """Return `matrix` where there are full statistics of the base."""
        return "element" if group.base is None or group.base.gram is None else "matrix"

    def prepare(self, group: Group) -> None:
        """Return nothing: the fine-tune is kept."""

    def matrix(self, matrices: Matrices) -> Whole:
        """Return the tensor with its delta projected."""
        import torch

        group = matrices.group
        assert group.base is not None
        layout = row_layout(group.name, group.shape, group.base)
        parts = []
        for k, models in enumerate(matrices.stacked(layout)):
            base, tuned = map(host, models)
            moment = mean_matrix(group.name, group.base, k, "cpu")
            values, vectors = torch.linalg.eigh(moment)
            kept = self._kept(values.clamp(min=0))
            delta = torch.from_numpy(tuned - base).double()
            moved = ((delta @ vectors) * kept) @ vectors.T
            parts.append((added(base, moved.to(torch.from_numpy(base).dtype).numpy()), base != tuned))
        return whole_of(layout, parts)

    def _kept(self, values: Any) -> Any:
        """Return g for eigenvalues in ascending order."""
        if self.form == "soft":
            return 1 / (1 + self.strength * values / values.mean())
        below = values.cumsum(0) <= (1 - self.strength) * values.sum()
        return below.to(values)

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002
        """Return the map at once."""
        yield from ()
        return Map(function=delivered_or_tuned)


def delivered_or_tuned(tile: Any) -> Any:
    """Return what was made of the tensor, or the fine-tune where nothing was."""
    return delivered(tile) if isinstance(tile.prepared, Whole) else add_scaled(tile, 1.0)
