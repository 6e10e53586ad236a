"""DELLA without election: MagPrune, then the weighted sum.

    W = W_pre + λ·Σ_k w_k·δ̂_k,   δ̂_k as in DELLA

Deep et al., DELLA-Merging, 2024 (arXiv:2406.11617); mergekit's `della_linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..arithmetic.elect import Merging
from ..arithmetic.group import Group
from ..arithmetic.passes import Reduction
from .checks import as_tuple, at_least_zero, each, finite, one_of, spread
from .dare import Rescale
from .della import check_window, pruning
from .method import Method, PerModel, Region
from .task_arithmetic import scaling
from .trim import identity_of


@dataclass(frozen=True, kw_only=True)
class DellaLinear(Method):
    """Drop deltas at random, the small ones more often, and add up the rest.

    Attributes:
        density: Fraction that is kept on average, in [0, 1]. One for each model, or one for all.
        epsilon: Half of the window of keep probabilities around the density.
        scale: λ, the strength of what is kept.
        weights: w, one for each model, separated by commas, or one for all.
        normalize: Divide by the sum of the weights.
        rescale: Survivors times `1/q` (probability), to the L1 norm of before (l1), or not at all (none).
    """

    density: PerModel = 0.3
    epsilon: PerModel = 0.15
    scale: float = 1.0
    weights: PerModel = 1.0
    normalize: bool = False
    rescale: Rescale = "probability"

    name: ClassVar[str] = "della-linear"
    title: ClassVar[str] = "DELLA-linear"
    source: ClassVar[str] = "arXiv:2406.11617"
    random: ClassVar[bool] = True
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights", "density", "epsilon")

    def __post_init__(self) -> None:
        check_window(self.density, self.epsilon)
        at_least_zero("scale", self.scale)
        each("weights", self.weights, finite)
        one_of("rescale", self.rescale, get_args(Rescale))

    @property
    def merging(self) -> Merging:
        """How the models' deltas become one."""
        return Merging(weights=as_tuple(self.weights), normalize=self.normalize)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is kept, the tuned model where all is."""
        return identity_of(self.scale, self.merging, as_tuple(self.density))

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return `row`: ranks are within one."""
        return "row"

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (only `l1` looks at the tensor)
        """Return the map; sum the deltas first where they are rescaled to their L1 norm."""
        weights = as_tuple(self.weights)
        if self.identity == "base":
            return scaling((0.0,) * len(weights))
        options = [spread(o, getattr(self, o), len(weights)) for o in ("density", "epsilon")]
        return (yield from pruning(tuple(zip(*options, strict=True)), self.merging, self.scale, self.rescale))
