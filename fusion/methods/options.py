"""Methods that are chains of transforms, and the options that such methods share, each documented and checked once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

from ..arithmetic.group import Group, Region
from ..arithmetic.passes import Reduction
from ..arithmetic.per_model import PerModel
from ..transforms import bernoulli
from ..transforms.chain import Chain
from ..transforms.merge import Election
from ..transforms.trim import Rescale
from .checks import at_least_zero, each, finite, fraction, one_of
from .method import Method, Scope

RANGES = {
    "density": fraction,
    "sparsity": fraction,
    "gamma": fraction,
    "epsilon": at_least_zero,
    "scale": at_least_zero,
    "weights": finite,
}


@cache
def _choices(method: type[Method]) -> dict[str, tuple[str, ...]]:
    """Return what the options may say that are words, by their types."""
    hints = get_type_hints(method)
    return {option: get_args(hint) for option, hint in hints.items() if get_origin(hint) is Literal}


@dataclass(frozen=True, kw_only=True)
class Chained(Method):
    """A method that is a chain: selection, merging, scale."""

    def __post_init__(self) -> None:
        for option, choices in _choices(type(self)).items():
            one_of(option, getattr(self, option), choices)
        for option in [option for option in RANGES if hasattr(self, option)]:
            each(option, getattr(self, option), RANGES[option])
        _ = self.chain  # which refuses what its transforms cannot do

    @cached_property
    @abstractmethod
    def chain(self) -> Chain:
        """The method, of these options; made once, as each tensor asks for it several times."""

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is added; the tuned model where it is alone, whole and added once."""
        return self.chain.identity

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return what must be seen whole to select."""
        return self.chain.selection.region  # merging and scaling take each element alone

    def reduce(self, num_elements: int) -> Reduction:
        """Yield the passes of the chain; return its map."""
        return self.chain.reduce(num_elements)


@dataclass(frozen=True, kw_only=True)
class Weighted(Chained):
    """Options of methods that add the merged deltas of any number of models.

    Attributes:
        scale: λ, the strength of what is kept.
        weights: w, one for each model, separated by commas, or one for all.
    """

    scale: float = 1.0
    weights: PerModel = 1.0

    min_models: ClassVar[int] = 0
    max_models: ClassVar[int | None] = None


@dataclass(frozen=True, kw_only=True)
class Summed(Weighted):
    """Options of a weighted sum.

    Attributes:
        normalize: Divide the weights by their sum.
    """

    normalize: bool = False


@dataclass(frozen=True, kw_only=True)
class Elected(Weighted):
    """Options of the election of signs and the mean in TIES.

    Attributes:
        election: Votes for a sign: `weighted` by the models' weights, or `unweighted`, as in PEFT.
        normalize: Divide by the sum of the weights of the models that agree; if `unweighted`, by their number.
    """

    election: Election = "weighted"
    normalize: bool = True


@dataclass(frozen=True, kw_only=True)
class Trimmed(Method):
    """The option of a trim.

    Attributes:
        density: Fraction that is kept, in [0, 1]: exactly `floor(density·N)` deltas. One for each model, or for all.
    """

    density: PerModel = 0.2

    per_model: ClassVar[tuple[str, ...]] = ("weights", "density")


@dataclass(frozen=True, kw_only=True)
class Banded(Trimmed):
    """The options of a band.

    Attributes:
        gamma: Fraction of the largest that is dropped as outliers, in [0, 1].
        rescale: Leave the kept deltas as they are (none), or scale them to the L1 norm of all deltas (l1).
    """

    gamma: PerModel = 0.01
    rescale: Rescale = "none"

    per_model: ClassVar[tuple[str, ...]] = ("weights", "density", "gamma")


@dataclass(frozen=True, kw_only=True)
class Dropped(Method):
    """The options of a drop at random with one probability.

    Attributes:
        sparsity: p, the probability of being dropped, in [0, 1]; 1 gives the base. One for each model, or one for all.
        rescale: Multiply kept deltas by `1/(1 − p)` (probability), scale them to the L1 norm of all deltas (l1), or
            leave them (none).
    """

    sparsity: PerModel = 0.9
    rescale: bernoulli.DropRescale = "probability"

    random: ClassVar[bool] = True
    per_model: ClassVar[tuple[str, ...]] = ("weights", "sparsity")


@dataclass(frozen=True, kw_only=True)
class Pruned(Method):
    """The options of MagPrune.

    Attributes:
        density: Fraction that is kept on average, in [0, 1]. One for each model, or one for all.
        epsilon: Half of the range of keep probabilities around the density.
        rescale: Multiply kept deltas by `1/q` (probability), scale them to the L1 norm of all deltas (l1), or leave
            them (none).
    """

    density: PerModel = 0.3
    epsilon: PerModel = 0.15
    rescale: bernoulli.DropRescale = "probability"

    random: ClassVar[bool] = True
    per_model: ClassVar[tuple[str, ...]] = ("weights", "density", "epsilon")


@dataclass(frozen=True, kw_only=True)
class Scoped(Method):
    """The option of methods whose fraction may be met over more than a tensor.

    Attributes:
        scope: What has this density as a whole: each `tensor`, each `block`, or the `model`.
    """

    scope: Scope = "tensor"  # pyright: ignore[reportIncompatibleVariableOverride] (an option here)
