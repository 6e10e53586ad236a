"""RegMean: linear layers are averaged so that each model's outputs change least on that model's own inputs.

    W = W_pre + (Σ_k w_k·δ_k·Â_k)·(Σ_k w_k·Â_k)⁻¹,        Â = α·A + (1 − α)·diag(A)

Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023 (arXiv:2212.09849), eq. 2, here
in deltas, which is the same: the base cancels. A = E[x·xᵀ] of model k's inputs through model k, a mean over tokens, so
that a model with more samples counts no more than another. What is no matrix, or has no full statistics, is averaged
by their diagonal; a tensor, or a single input, that no model saw anything of by the weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np

from ..arithmetic.average import mean_matrices, mixings, shares
from ..arithmetic.group import Group, Region
from ..arithmetic.matrices import CHUNK, Matrices, Whole, added, delivered, differs
from ..arithmetic.passes import Map, Reduction
from ..arithmetic.per_model import PerModel, as_tuple
from ..arithmetic.row_layout import row_layout
from ..device import device_of, float64_device, torch_device
from .checks import averages, fraction
from .method import Method


@dataclass(frozen=True, kw_only=True)
class RegMean(Method):
    """Average linear layers so that each model keeps its outputs on its own inputs.

    Attributes:
        weights: w, one for each tuned model, separated by commas, or one for all.
        alpha: α, the factor of the matrices' off-diagonals, in [0, 1]. Use a smaller one if they are badly
            conditioned; the authors take 0.1 for T5.
    """

    weights: PerModel = 1.0
    alpha: float = 0.9

    name: ClassVar[str] = "regmean"
    title: ClassVar[str] = "RegMean"
    source: ClassVar[str] = "arXiv:2212.09849"
    uses_curvature: ClassVar[bool] = True
    needs_gram: ClassVar[bool] = True
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights",)
    loads_torch: ClassVar[bool] = True
    bytes_per_element: ClassVar[int] = 16
    bytes_per_input_pair: ClassVar[int] = 32
    bytes_per_model_pair: ClassVar[int] = 24

    def __post_init__(self) -> None:
        averages("weights", self.weights)
        fraction("alpha", self.alpha)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The tuned model, where it is the only one."""
        return "tuned" if isinstance(self.weights, tuple) and len(self.weights) == 1 else None

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return `matrix`."""
        return "matrix"

    def matrix(self, matrices: Matrices) -> Whole:
        """Return the average."""
        seen = [c for c in matrices.group.tuned if c is not None and c.terms and c.num_tokens]
        if seen and all(c.gram is not None for c in seen):
            return self._by_matrix(matrices)
        return self._by_element(matrices)

    def _by_element(self, matrices: Matrices) -> Whole:
        group = matrices.group
        parts = shares(group, as_tuple(self.weights))
        pieces = []
        for start in range(0, prod(group.shape), CHUNK):
            base, *tuned = matrices.flat(start, min(start + CHUNK, prod(group.shape)))
            moved = sum(part.expand(start, len(base)) * (t - base) for part, t in zip(parts, tuned, strict=True))
            pieces.append((added(base, moved), differs(base, tuned)))
        values, kept = (np.concatenate(found) for found in zip(*pieces, strict=True))
        return Whole(values=values, kept=kept)

    def _by_matrix(self, matrices: Matrices) -> Whole:
        import torch

        group = matrices.group
        layout = row_layout(
            group.name, group.shape, next(c for c in group.tuned if c is not None and c.gram is not None)
        )
        values: np.ndarray | None = None
        kept = np.zeros((layout.stack, layout.rows, layout.width), bool)
        for stack, runs in matrices.stacks(layout):
            mixed: list[Any] = []
            for rows, (base, *tuned) in runs():
                device = device_of(torch_device(matrices.device), base.dtype)
                mixed = mixed or self._mixings(group, stack, device, base.dtype)
                if values is None:
                    values = np.empty(kept.shape, base.dtype)
                moved = sum(
                    torch.from_numpy(np.ascontiguousarray(t - base)).to(device) @ matrix
                    for t, matrix in zip(tuned, mixed, strict=True)
                )
                values[stack, rows] = added(base, moved.cpu().numpy())  # pyright: ignore[reportAttributeAccessIssue]
                kept[stack, rows] = differs(base, tuned)
        assert values is not None  # a tensor without elements has no spans
        return Whole(values=layout.join(values), kept=layout.join(kept))

    def _mixings(self, group: Group, stack: int, device: Any, dtype: np.dtype) -> list[Any]:
        """Return what each delta of one of the stacked matrices is multiplied by."""
        import torch

        found = mean_matrices(group, stack, float64_device(device))
        for weight, matrix in zip(as_tuple(self.weights), found, strict=True):
            diagonal = matrix.diagonal().clone()
            matrix.mul_(self.alpha).diagonal().copy_(diagonal)
            matrix.mul_(weight)
        unseen = torch.stack([matrix.diagonal() for matrix in found]).sum(0) == 0  # inputs that no model ever saw
        for weight, matrix in zip(as_tuple(self.weights), found, strict=True):
            matrix.diagonal()[unseen] = weight
        hint = "a smaller alpha makes it positive definite"
        wanted = torch.float64 if dtype == np.float64 else torch.float32
        return [mixing.to(device) for mixing in mixings(group.name, found, dtype=wanted, hint=hint)]

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the tensor has been made whole)
        """Return the map at once."""
        yield from ()
        return Map(function=delivered)
