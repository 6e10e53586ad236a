"""DARE-TIES: DARE's sparsification in place of trimming, then TIES' election and disjoint mean.

    δ̂_k = M_k·δ_k/(1 − p_k),  M_k ~ Bernoulli(1 − p_k)
    σ   = sign Σ_k w_k·δ̂_k                               elected, per element; zero elects +
    W   = W_pre + λ·Σ_{k: sign = σ} w_k·δ̂_k / Σ_{k: sign = σ} w_k

Yu et al. (arXiv:2311.03099) on Yadav et al. (arXiv:2306.01708). mergekit's `dare_ties` sums instead of averaging
(`--no-normalize`) and rescales to the L1 norm of before (`--rescale l1`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..arithmetic.elect import Election, Merging
from ..arithmetic.passes import Map, Reduction
from .checks import as_tuple, at_least_zero, each, finite, fraction, one_of, spread
from .dare import Rescale, drop_and_merge, factors_of
from .method import Method, PerModel
from .task_arithmetic import add_scaled
from .trim import identity_of


@dataclass(frozen=True, kw_only=True)
class DareTies(Method):
    """Drop deltas at random, elect a sign for each element, and average the models that agree with it.

    Attributes:
        sparsity: p, the probability of being dropped, in [0, 1]. One for each model, or one for all.
        scale: λ, the strength of what is kept.
        weights: w, one for each model, separated by commas, or one for all.
        election: Whether the votes are `weighted`, or counted `unweighted` by the deltas alone, as in PEFT.
        normalize: Divide by the sum of the agreeing weights; `unweighted`, by the number that agree.
        rescale: Survivors times `1/(1 − p)` (probability), to the L1 norm of before (l1), or not at all (none).
    """

    sparsity: PerModel = 0.9
    scale: float = 1.0
    weights: PerModel = 1.0
    election: Election = "weighted"
    normalize: bool = True
    rescale: Rescale = "probability"

    name: ClassVar[str] = "dare-ties"
    title: ClassVar[str] = "DARE-TIES"
    source: ClassVar[str] = "arXiv:2311.03099, arXiv:2306.01708"
    random: ClassVar[bool] = True
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights", "sparsity")

    def __post_init__(self) -> None:
        each("sparsity", self.sparsity, fraction)
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
        """The base where nothing is added; the tuned model where it is alone, whole and added once."""
        return identity_of(self.scale, self.merging, tuple(1 - p for p in as_tuple(self.sparsity)))

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (only `l1` looks at the tensor)
        """Return the map; sum the deltas first where they are rescaled to their L1 norm."""
        yield from ()
        if self.identity == "base":
            return Map(function=add_scaled, arguments=(0.0,))
        keeps = tuple(1 - p for p in spread("sparsity", self.sparsity, len(self.merging.weights)))
        factors = yield from factors_of(self.rescale, keeps)
        return Map(function=drop_and_merge, arguments=(keeps, factors, self.merging, self.scale))
