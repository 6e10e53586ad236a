"""What a method is: what must be known of a whole tensor, then the value of each element."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from ..arithmetic.group import Group, Region
from ..arithmetic.matrices import Matrices, Whole
from ..arithmetic.passes import Finding, Reduction
from ..arithmetic.per_model import spread
from ..errors import MethodError, Way
from ..typed import Options

Scope = Literal["tensor", "block", "model"]  # what shares one reduction


@dataclass(frozen=True, kw_only=True)
class Method(Options, ABC):
    """One way to fuse. Its fields are its options, in a recipe and on the command line."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    uses_curvature: ClassVar[bool] = False
    needs_gram: ClassVar[bool] = False  # the full Σ x·xᵀ, not the diagonal alone
    loads_torch: ClassVar[bool] = False  # whether it computes with torch, on a CPU too
    random: ClassVar[bool] = False
    protects: ClassVar[bool] = False  # whether it is the protection of the base and nothing else
    min_models: ClassVar[int] = 1  # 0: there may be the base alone, in recipes, which is then taken as it is
    max_models: ClassVar[int | None] = 1  # None: any number of tuned models
    per_model: ClassVar[tuple[str, ...]] = ()  # options that may have one value for each model
    scope: ClassVar[Scope] = "tensor"  # an option of methods that can reduce over more

    # Private bytes at the height of the arithmetic on one element of a region, and on one pair of a matrix's inputs:
    # what a run is billed for. A test measures both.
    bytes_per_element: ClassVar[int] = 160
    bytes_per_input_pair: ClassVar[int] = 0
    bytes_per_model_pair: ClassVar[int] = 0  # of such a pair, more for each tuned model

    @abstractmethod
    def reduce(self, num_elements: int) -> Reduction:
        """Yield the passes that are needed over `num_elements` elements; return the map that fuses them."""

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """Which input these options reproduce bit for bit, if any; tensors that cannot be fused follow it."""
        return None

    @property
    def counts_base(self) -> bool:
        """Whether the base is the first of the models that are averaged, with a weight of its own."""
        return False

    @property
    def model_range(self) -> tuple[int, int | None]:
        """The least and the greatest number of tuned models."""
        return self.min_models, self.max_models

    def for_models(self, num_models: int) -> Method:
        """Return these options with `weights` spelled out for each of `num_models` tuned models.

        Raises:
            MethodError: The method takes another number of models, or an option has another number of values.
        """
        least, most = self.model_range
        if num_models < least or (most is not None and num_models > most):
            wanted = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            ways = [Way(option="protect", effect="puts several together before it")] if most == 1 < num_models else []
            plural = "s" * (wanted != "1")
            raise MethodError(f"{self.title} takes {wanted} tuned model{plural}, got {num_models}", ways=ways)
        wanted = num_models + self.counts_base
        if not wanted:
            return self
        for option in self.per_model:
            spread(option, getattr(self, option), wanted)
        weights = getattr(self, "weights", None)
        return self if weights is None else replace(self, weights=spread("weights", weights, wanted))  # pyright: ignore[reportCallIssue]

    def among(self, places: Sequence[int]) -> Method:
        """Return these options, spelled out for each model, for some of them: by place, 0 being the base."""
        first = 0 if self.counts_base else 1
        own = {
            option: tuple(value[place - first] for place in places if place >= first)
            for option in self.per_model
            if isinstance(value := getattr(self, option), tuple) and len(value) > 1
        }
        return replace(self, **own)

    def region(self, group: Group) -> Region:  # noqa: ARG002 (for those that ask)
        """Return what one piece of work on a tensor is: any run of elements, whole rows, or all of its matrices."""
        return "element"

    def prepare(self, group: Group) -> Any:  # noqa: ARG002
        """Return what each tile of a tensor is given as `prepared`; called once a tensor, before its first tile."""
        return None

    def matrix(self, matrices: Matrices) -> Whole | Finding:
        """Return the whole tensor, or what was found of it; in place of `prepare` where the region is `matrix`."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Return the options as plain values, for the manifest."""
        return asdict(self)
