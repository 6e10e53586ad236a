"""What a transform is told of one tensor, beside its elements."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from .curvature import Curvature, Curvatures

Region = Literal["element", "row", "matrix"]  # what must be seen whole: nothing, each row, or all of a tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """One tensor of every model that takes part: the base and the tuned models.

    Attributes:
        name: In the output.
        shape: Of what is fused; fewer rows than the output has for a grown vocabulary.
        curvatures: What calibration measured of the tensor in each model, the base first; None where it did not.
        depth: How far through its stack of layers it is, from 0, the first layer or none at all, to 1, the last.
    """

    name: str
    shape: tuple[int, ...]
    curvatures: Curvatures = ()
    depth: float = 0.0

    @property
    def base(self) -> Curvature | None:
        """The curvature of the base."""
        return self.curvatures[0] if self.curvatures else None

    @property
    def tuned(self) -> Curvatures:
        """The curvature of each tuned model."""
        return self.curvatures[1:]

    @property
    def target(self) -> Curvature | None:
        """The curvature of the first tuned model: the one that methods for one model weigh deltas by."""
        return next(iter(self.tuned), None)

    @property
    def row_length(self) -> int:
        """Elements of a row: those along the last axis."""
        return max(1, prod(self.shape[-1:]))

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)
