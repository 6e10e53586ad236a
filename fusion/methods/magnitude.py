"""Magnitude trim: keep the largest deltas of each model, unscaled.

    W = W_pre + λ·Σ_k w_k·top(δ_k)

The ablation of DARE and TIES that their papers compare with; of equal magnitudes those with the lowest index are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..arithmetic.elect import Merging
from ..arithmetic.passes import Reduction
from .checks import as_tuple, at_least_zero, each, finite, fraction, one_of, spread
from .method import Method, PerModel, Scope
from .task_arithmetic import scaling
from .trim import Rescale, identity_of, trimming


@dataclass(frozen=True, kw_only=True)
class Magnitude(Method):
    """Keep the largest deltas as they are.

    Attributes:
        density: Fraction that is kept, in [0, 1]: exactly `floor(density·N)` deltas. One for each model, or for all.
        scale: λ, the strength of what is kept.
        weights: w, one for each model, separated by commas, or one for all.
        normalize: Divide by the sum of the weights.
        rescale: Leave the kept as they are (none), or give them the L1 norm of all (l1).
        scope: Over what the density is met: each `tensor`, `block`, or the `model`.
    """

    density: PerModel = 0.1
    scale: float = 1.0
    weights: PerModel = 1.0
    normalize: bool = False
    rescale: Rescale = "none"
    scope: Scope = "tensor"  # pyright: ignore[reportIncompatibleVariableOverride] (an option here)

    name: ClassVar[str] = "magnitude"
    title: ClassVar[str] = "magnitude trim"
    source: ClassVar[str] = "arXiv:2306.01708, arXiv:2311.03099"
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights", "density")

    def __post_init__(self) -> None:
        each("density", self.density, fraction)
        at_least_zero("scale", self.scale)
        each("weights", self.weights, finite)
        one_of("rescale", self.rescale, get_args(Rescale))
        one_of("scope", self.scope, get_args(Scope))

    @property
    def merging(self) -> Merging:
        """How the models' deltas become one."""
        return Merging(weights=as_tuple(self.weights), normalize=self.normalize)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is kept, the tuned model where all is."""
        return identity_of(self.scale, self.merging, as_tuple(self.density))

    def reduce(self, num_elements: int) -> Reduction:
        """Find the smallest magnitude that is kept."""
        weights = as_tuple(self.weights)
        if self.identity == "base":
            return scaling((0.0,) * len(weights))
        densities = spread("density", self.density, len(weights))
        counts = [(int(density * num_elements), 0) for density in densities]
        return (yield from trimming(counts, num_elements, self.merging, self.scale, self.rescale))
