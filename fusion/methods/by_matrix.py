"""Methods that make one delta of several a matrix at a time and need no statistics."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np

from ..arithmetic.group import Group, Region
from ..arithmetic.matrices import CHUNK, Matrices, Whole, added, delivered, differs
from ..arithmetic.passes import Map, Reduction
from ..arithmetic.row_layout import RowLayout, plain_layout
from ..device import device_of, torch_device
from ..transforms.scale import add_scaled
from .checks import at_least_zero
from .method import Method


def matrix_layout(group: Group) -> RowLayout | None:
    """Return a tensor as one matrix, or one an expert where they are stacked; None for what is no matrix."""
    if len(group.shape) == 2:
        return plain_layout(group.shape)
    if len(group.shape) == 3 and "experts" in group.name.split("."):
        return RowLayout(shape=group.shape, order=(0, 1, 2), stack=group.shape[0], width=group.shape[2])
    return None


@dataclass(frozen=True, kw_only=True)
class ByMatrix(Method):
    """`W_pre + λ·merged(δ_1, …, δ_K)` of each matrix; of other tensors the mean of the deltas, times λ.

    Attributes:
        scale: λ, the strength of the merged delta.
    """

    scale: float = 1.0

    min_models: ClassVar[int] = 2
    max_models: ClassVar[int | None] = None
    loads_torch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least_zero("scale", self.scale)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is added."""
        return "base" if self.scale == 0 else None

    @abstractmethod
    def merged(self, name: str, deltas: list[Any]) -> Any:
        """Return one delta of those that are not zero throughout, float torch matrices (rows, inputs); at least one.

        The list may be emptied, so that each is let go of once it has been used.
        """

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return `matrix`, unless nothing is added."""
        return "element" if self.identity else "matrix"

    def matrix(self, matrices: Matrices) -> Whole:
        """Return the tensor; the base's bits where nothing is added."""
        layout = matrix_layout(matrices.group)
        return self._mean(matrices) if layout is None else self._by_matrix(matrices, layout)

    def _mean(self, matrices: Matrices) -> Whole:
        size, pieces = prod(matrices.group.shape), []
        for start in range(0, size, CHUNK):
            base, *tuned = matrices.flat(start, min(start + CHUNK, size))
            moved = self.scale * (sum(model - base for model in tuned) / len(tuned))
            pieces.append((added(base, moved), differs(base, tuned)))
        values, kept = (np.concatenate(found) for found in zip(*pieces, strict=True))
        return Whole(values=values, kept=kept)

    def _by_matrix(self, matrices: Matrices, layout: RowLayout) -> Whole:
        values: np.ndarray | None = None
        kept = np.zeros((layout.stack, layout.rows, layout.width), bool)
        for stack, runs in matrices.stacks(layout):
            moved = self._moved(matrices, runs, layout)
            for rows, (base, *tuned) in runs():
                if values is None:
                    values = np.empty(kept.shape, base.dtype)
                values[stack, rows] = added(base, moved[rows])
                kept[stack, rows] = differs(base, tuned)
        assert values is not None  # a tensor without elements has no spans
        return Whole(values=layout.join(values), kept=layout.join(kept))

    def _moved(self, matrices: Matrices, runs: Any, layout: RowLayout) -> np.ndarray:
        """Return λ times the merged delta of one of the stacked matrices, (rows, width)."""
        import torch

        deltas: list[Any] = []
        for rows, (base, *tuned) in runs():
            device = device_of(torch_device(matrices.device), base.dtype)
            if not deltas:
                shape, dtype = (layout.rows, layout.width), torch.from_numpy(base).dtype
                deltas = [torch.empty(shape, dtype=dtype, device=device) for _ in tuned]
            for delta, model in zip(deltas, tuned, strict=True):
                delta[rows] = torch.from_numpy(model - base).to(device)
        changed = [delta for delta in deltas if delta.any()]
        if not changed:
            return deltas[0].cpu().numpy()
        del deltas
        return self.merged(matrices.group.name, changed).mul_(self.scale).cpu().numpy()

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the tensor has been made whole)
        """Return the map at once."""
        yield from ()
        return Map(function=delivered) if self.identity is None else Map(function=add_scaled, arguments=(0.0,))
