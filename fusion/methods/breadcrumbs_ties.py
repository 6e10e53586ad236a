"""Breadcrumbs-TIES: Model Breadcrumbs' trimming, then TIES' election and disjoint mean.

Davari & Belilovsky (arXiv:2312.06795) and Yadav et al. (arXiv:2306.01708), joined as published in mergekit, which sums
the agreeing models in place of averaging them (`--no-normalize`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..arithmetic.elect import Election, Merging
from ..arithmetic.passes import Reduction
from .breadcrumbs import band
from .checks import as_tuple, at_least_zero, each, finite, fraction, one_of, spread
from .method import Method, PerModel
from .task_arithmetic import scaling
from .trim import Rescale, identity_of, trimming


@dataclass(frozen=True, kw_only=True)
class BreadcrumbsTies(Method):
    """Drop the smallest and the largest deltas, elect signs, and average the models that agree.

    Attributes:
        density: Fraction that is kept, in [0, 1]. One for each model, or one for all.
        gamma: Fraction of the largest that is dropped as outliers, in [0, 1].
        scale: λ, the strength of what is kept.
        weights: w, one for each model, separated by commas, or one for all.
        election: Whether the votes are `weighted`, or counted `unweighted` by the deltas alone.
        normalize: Divide by the sum of the agreeing weights.
        rescale: Leave the kept as they are (none), or give them the L1 norm of all (l1).
    """

    density: PerModel = 0.15
    gamma: PerModel = 0.01
    scale: float = 1.0
    weights: PerModel = 1.0
    election: Election = "weighted"
    normalize: bool = True
    rescale: Rescale = "none"

    name: ClassVar[str] = "breadcrumbs-ties"
    title: ClassVar[str] = "Breadcrumbs-TIES"
    source: ClassVar[str] = "arXiv:2312.06795, arXiv:2306.01708"
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights", "density", "gamma")

    def __post_init__(self) -> None:
        each("density", self.density, fraction)
        each("gamma", self.gamma, fraction)
        at_least_zero("scale", self.scale)
        each("weights", self.weights, finite)
        one_of("election", self.election, get_args(Election))
        one_of("rescale", self.rescale, get_args(Rescale))

    @property
    def merging(self) -> Merging:
        """How the models' deltas become one."""
        return Merging.elected(as_tuple(self.weights), self.election, normalize=self.normalize)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is kept, the tuned model where all is."""
        return identity_of(self.scale, self.merging, as_tuple(self.density))

    def reduce(self, num_elements: int) -> Reduction:
        """Find the magnitudes between which deltas are kept."""
        weights = as_tuple(self.weights)
        if self.identity == "base":
            return scaling((0.0,) * len(weights))
        densities, gammas = (spread(o, getattr(self, o), len(weights)) for o in ("density", "gamma"))
        counts = [band(num_elements, density, gamma) for density, gamma in zip(densities, gammas, strict=True)]
        return (yield from trimming(counts, num_elements, self.merging, self.scale, self.rescale))
