"""Task arithmetic: `W = W_pre + λ·Σ_k w_k·δ_k`.

Ilharco et al., Editing models with task arithmetic, ICLR 2023 (arXiv:2212.04089).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..arithmetic.passes import Reduction
from ..arithmetic.per_model import PerModel
from ..errors import MethodError
from ..transforms.merge import total
from ..transforms.scale import scaling
from .checks import at_least_zero, each, finite
from .method import Method


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Method):
    """Add the deltas, each with its weight, scaled by λ; 0.5 is half way between base and fine-tune.

    Attributes:
        scale: λ; for one model, 0 is the base, 1 the tuned model, and 0.5 is half way.
        weights: w, one for each model, separated by commas, or one for all. A negative weight removes a task.
        normalize: Divide the weights by their sum.
    """

    scale: float = 1.0
    weights: PerModel = 1.0
    normalize: bool = False

    name: ClassVar[str] = "task-arithmetic"
    title: ClassVar[str] = "task arithmetic"
    source: ClassVar[str] = "arXiv:2212.04089"
    min_models: ClassVar[int] = 0
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        at_least_zero("scale", self.scale)
        each("weights", self.weights, finite)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """`λ·w_k`, normalised where that is asked for."""
        merging = total(self.weights, normalize=self.normalize)
        if self.normalize and any(merging.weights) and not sum(merging.weights):
            raise MethodError("weights that add up to 0 cannot be normalised")
        return merging.coefficients(self.scale)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is added, the tuned model where it is added whole."""
        first, *others = self.coefficients
        if not any((first, *others)):
            return "base"
        return "tuned" if first == 1 and not any(others) else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (nothing need be known of the tensor)
        """Return the map at once."""
        yield from ()
        return scaling(self.coefficients)
