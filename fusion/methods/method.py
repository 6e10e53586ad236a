"""What a method is: what must be known of a whole tensor, then the value of each element."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from array_api_compat import array_namespace

from ..curvature import Curvature
from ..errors import MethodError
from ..sums import block_sums, exact_total
from ..tile import Tile
from .checks import spread


def join_blocks(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Return the block sums of consecutive pieces as those of one tile."""
    return np.concatenate(pieces, axis=1)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One look at every element before any is changed.

    Attributes:
        function: `function(tile, *arguments)` returns a (rows, num_blocks) array of block sums. A module-level
            function: the CPU kernel that stands in for it is found by its identity.
        combine: Turns the arrays of all tiles, in order, into what `Method.reduce` is sent.
        join: Turns the arrays of consecutive pieces of a tile into that of the tile.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    combine: Callable[[Sequence[np.ndarray]], Any] = exact_total
    join: Callable[[Sequence[np.ndarray]], np.ndarray] = join_blocks


@dataclass(frozen=True, kw_only=True, eq=False)
class Fused:
    """What a method made of a tile.

    Attributes:
        values: Fused elements, float32 or float64, shape (n,).
        kept: Which deltas had a part in it; bool, shape (n,).
        clipped: Which keep probabilities were cut at 1, or None for a method without such.
    """

    values: Any
    kept: Any
    clipped: Any = None


@dataclass(frozen=True, kw_only=True)
class Map:
    """The second step of a method over one tensor, ready to run on any of its tiles.

    Attributes:
        function: `function(tile, *arguments)` returns `Fused`; module-level, as for `Pass`.
        figures: What the reduction learned of the tensor, for the manifest.
    """

    function: Callable[..., Fused]
    arguments: tuple[Any, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)


PerModel = float | tuple[float, ...]  # one number for all models, or one for each
Scope = Literal["tensor", "block", "model"]  # what shares one reduction
Reduction = Generator[Pass, Any, Map]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """One way to fuse. Its fields are its options, in a recipe and on the command line."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    uses_curvature: ClassVar[bool] = False
    needs_gram: ClassVar[bool] = False  # the full Σ x·xᵀ, not the diagonal alone
    random: ClassVar[bool] = False
    min_models: ClassVar[int] = 1
    max_models: ClassVar[int | None] = 1  # None: any number of tuned models
    per_model: ClassVar[tuple[str, ...]] = ()  # options that may have one value for each model
    scope: ClassVar[Scope] = "tensor"  # an option of methods that can reduce over more

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
            raise MethodError(f"{self.title} takes {wanted} tuned model{'s' * (wanted != '1')}, got {num_models}")
        wanted = num_models + self.counts_base
        for option in self.per_model:
            spread(option, getattr(self, option), wanted)
        weights = getattr(self, "weights", None)
        return self if weights is None else replace(self, weights=spread("weights", weights, wanted))  # pyright: ignore[reportCallIssue]

    def grain(self, shape: tuple[int, ...], curvature: Curvature | None) -> int:  # noqa: ARG002 (for those that ask)
        """Return how many consecutive elements are never cut apart: 1, or those of a row."""
        return 1

    def prepare(self, name: str, shape: tuple[int, ...], curvature: Curvature | None) -> Any:  # noqa: ARG002
        """Return what each tile of a tensor is given as `prepared`; called once a tensor, before its first tile."""
        return None

    def options(self) -> dict[str, Any]:
        """Return the options as plain values, for the manifest."""
        return asdict(self)


def measure(tile: Tile, stored: Any, fused: Fused) -> Any:
    """Return block sums of the figures that every tensor is recorded with, shape (6, num_blocks).

    Rows: kept deltas, zero deltas, clipped probabilities, Σ|δ| over all tuned models, and the L1 and squared L2
    distance between `stored`, the fused values as rounded for storage, and the base.
    """
    xp = array_namespace(tile.base)
    zero = xp.ones(tile.base.shape, dtype=xp.bool, device=tile.base.device)
    magnitude = xp.zeros_like(tile.base)
    for delta in tile.deltas:
        zero = zero & (delta == 0)
        magnitude = magnitude + xp.abs(delta)
    clipped = xp.zeros_like(zero) if fused.clipped is None else fused.clipped
    moved = xp.abs(stored - tile.base)
    wide = xp.astype(moved, xp.float64)
    rows = (fused.kept & ~zero, zero, clipped & ~zero, magnitude, moved, wide * wide)
    return xp.stack([block_sums(row) for row in rows])
