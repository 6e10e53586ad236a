"""Model Breadcrumbs: drop the smallest deltas as noise and the very largest as outliers; add up the rest.

    W = W_pre + λ·Σ_k w_k·m_k·δ_k,   m_k = 1 between the ranks

Davari & Belilovsky, Model Breadcrumbs, ECCV 2024 (arXiv:2312.06795), over each tensor. The paper's β is
`1 − density − gamma` here, its γ the fraction below the outliers. As in mergekit `density` is what is kept, exactly
`floor(density·N)`, and fewer outliers are dropped where they would cut into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..arithmetic.elect import Merging
from ..arithmetic.passes import Reduction
from .checks import as_tuple, at_least_zero, each, finite, fraction, one_of, spread
from .method import Method, PerModel
from .task_arithmetic import scaling
from .trim import Rescale, identity_of, trimming


def band(num_elements: int, density: float, gamma: float) -> tuple[int, int]:
    """Return how many of the largest are looked at, and how many of these are outliers; the difference is kept."""
    kept, outliers = int(density * num_elements), int(gamma * num_elements)
    smallest = max(0, num_elements - kept - outliers)
    return num_elements - smallest, num_elements - smallest - kept


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Method):
    """Drop the smallest and the largest deltas, and add up the rest.

    Attributes:
        density: Fraction that is kept, in [0, 1]. One for each model, or one for all.
        gamma: Fraction of the largest that is dropped as outliers, in [0, 1].
        scale: λ, the strength of what is kept.
        weights: w, one for each model, separated by commas, or one for all.
        normalize: Divide by the sum of the weights.
        rescale: Leave the kept as they are (none), or give them the L1 norm of all (l1).
    """

    density: PerModel = 0.15
    gamma: PerModel = 0.01
    scale: float = 1.0
    weights: PerModel = 1.0
    normalize: bool = False
    rescale: Rescale = "none"

    name: ClassVar[str] = "breadcrumbs"
    title: ClassVar[str] = "Model Breadcrumbs"
    source: ClassVar[str] = "arXiv:2312.06795"
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights", "density", "gamma")

    def __post_init__(self) -> None:
        each("density", self.density, fraction)
        each("gamma", self.gamma, fraction)
        at_least_zero("scale", self.scale)
        each("weights", self.weights, finite)
        one_of("rescale", self.rescale, get_args(Rescale))

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is kept, the tuned model where all is."""
        return identity_of(self.scale, self.merging, as_tuple(self.density))

    @property
    def merging(self) -> Merging:
        """How the models' deltas become one."""
        return Merging(weights=as_tuple(self.weights), normalize=self.normalize)

    def reduce(self, num_elements: int) -> Reduction:
        """Find the magnitudes between which deltas are kept."""
        weights = as_tuple(self.weights)
        if self.identity == "base":
            return scaling((0.0,) * len(weights))
        densities, gammas = (spread(o, getattr(self, o), len(weights)) for o in ("density", "gamma"))
        counts = [band(num_elements, density, gamma) for density, gamma in zip(densities, gammas, strict=True)]
        return (yield from trimming(counts, num_elements, self.merging, self.scale, self.rescale))
