"""TIES: trim each model's deltas to the largest, elect a sign for each element, average the models that agree with it.

    τ_k = top(δ_k)                            the density·N largest magnitudes; of equals those with the lowest index
    σ   = sign Σ_k w_k·τ_k                    elected, per element; zero elects +
    W   = W_pre + λ·Σ_{k: sign = σ} w_k·τ_k / Σ_{k: sign = σ} w_k

Yadav et al., TIES-Merging, NeurIPS 2023 (arXiv:2306.01708), which has no weights. With weights this is mergekit's
`ties` under `normalize`; `--election unweighted` is PEFT's, where all have one vote and the mean is over their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..arithmetic.elect import Election, Merging
from ..arithmetic.passes import Reduction
from .checks import as_tuple, at_least_zero, each, finite, fraction, one_of, spread
from .method import Method, PerModel, Scope
from .task_arithmetic import scaling
from .trim import identity_of, trimming


@dataclass(frozen=True, kw_only=True)
class Ties(Method):
    """Keep the largest deltas of each model, elect signs, and average the models that agree.

    Attributes:
        density: Fraction that is kept, in [0, 1]: exactly `floor(density·N)` deltas. One for each model, or for all.
        scale: λ, the strength of what is kept.
        weights: w, one for each model, separated by commas, or one for all.
        election: Whether the votes are `weighted`, or counted `unweighted` by the deltas alone.
        normalize: Divide by the sum of the agreeing weights.
        scope: Over what the density is met: each `tensor`, `block`, or the `model`, as in the paper's code.
    """

    density: PerModel = 0.2
    scale: float = 1.0
    weights: PerModel = 1.0
    election: Election = "weighted"
    normalize: bool = True
    scope: Scope = "tensor"  # pyright: ignore[reportIncompatibleVariableOverride] (an option here)

    name: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    source: ClassVar[str] = "arXiv:2306.01708"
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights", "density")

    def __post_init__(self) -> None:
        each("density", self.density, fraction)
        at_least_zero("scale", self.scale)
        each("weights", self.weights, finite)
        one_of("election", self.election, get_args(Election))
        one_of("scope", self.scope, get_args(Scope))

    @property
    def merging(self) -> Merging:
        """How the models' deltas become one."""
        return Merging.elected(as_tuple(self.weights), self.election, normalize=self.normalize)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is kept, the tuned model where all is."""
        return identity_of(self.scale, self.merging, as_tuple(self.density))

    def reduce(self, num_elements: int) -> Reduction:
        """Find the smallest magnitude that is kept of each model."""
        weights = as_tuple(self.weights)
        if self.identity == "base":
            return scaling((0.0,) * len(weights))
        densities = spread("density", self.density, len(weights))
        counts = [(int(density * num_elements), 0) for density in densities]
        return (yield from trimming(counts, num_elements, self.merging, self.scale, "none"))
