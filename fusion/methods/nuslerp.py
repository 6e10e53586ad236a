"""NuSLERP: spherical interpolation of two fine-tunes, of their deltas where there is a base.

    W = W_pre + slerp(δ_a, δ_b; t),   t = w_b/(w_a + w_b)

As published in mergekit. The arc is that of the unit vectors, its point then applied to the vectors themselves; nothing
but exactly parallel vectors is interpolated linearly. `vectors` says what is a vector: the whole tensor, each row, or
each column (mergekit's `nuslerp_flatten: false`, alone or with `nuslerp_row_wise: true`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from array_api_compat import array_namespace

from ..arithmetic.group import Group, Region
from ..arithmetic.matrices import Matrices, Whole, delivered, whole_of
from ..arithmetic.passes import Fused, Map, Pass, Reduction
from ..arithmetic.per_model import PerModel, as_tuple
from ..arithmetic.row_layout import plain_layout
from ..arithmetic.span import LinearSpan, Vector, basis_products
from ..arithmetic.sums import beside, wide
from ..arithmetic.tile import Tile
from ..transforms.scale import scaling
from .checks import each, finite, one_of
from .combine import combination
from .method import Method
from .slerp import interpolated

Vectors = Literal["tensor", "rows", "columns"]
Origin = Literal["base", "zero"]
PARALLEL = 1e-16  # sin² of an angle that counts as zero


def slerp_along(one: Any, other: Any, t: float, axis: int) -> Any:
    """Return the points at t on the arcs between the vectors along an axis; zero vectors have a right angle."""
    xp = array_namespace(one)

    def unit(vectors: Any) -> Any:
        norm = xp.sqrt(xp.sum(vectors * vectors, axis=axis, keepdims=True))
        return vectors / xp.where(norm > 0, norm, xp.ones_like(norm))

    u, v = unit(one), unit(other)
    # Half the chord and half the sum of unit vectors are sine and cosine of half the angle, precise at any angle.
    half_sine = xp.sqrt(xp.sum((u - v) ** 2, axis=axis, keepdims=True)) / 2
    half_cosine = xp.sqrt(xp.sum((u + v) ** 2, axis=axis, keepdims=True)) / 2
    theta = 2 * xp.atan2(half_sine, half_cosine)
    sine = xp.sin(theta)
    parallel = sine * sine <= PARALLEL
    safe = xp.where(parallel, xp.ones_like(sine), sine)
    arc = (xp.sin((1 - t) * theta) * one + xp.sin(t * theta) * other) / safe
    return xp.where(parallel, (1 - t) * one + t * other, arc)


def slerp_lines(base: Any, tuned: Sequence[Any], t: float, origin: Origin, axis: int) -> tuple[Any, Any]:
    """Return the interpolation of each row (axis 1) or column (axis 0), and where the models differ.

    Args:
        base, tuned: (rows, columns).
    """
    xp = array_namespace(base)
    deltas = [model - base for model in tuned]
    pair = deltas if origin == "base" else (base, tuned[0])
    one, other = map(wide, pair)
    moved = slerp_along(one, other, t, axis)
    differs = deltas[0] != 0
    if origin == "base":
        differs = differs | (deltas[1] != 0)
        moved = wide(base) + moved
    return xp.where(differs, beside(moved, base), base), differs


def slerp_rows(tile: Tile, t: float, origin: Origin) -> Fused:
    """Return the interpolation of each row of a tile of whole rows."""
    xp = array_namespace(tile.base)
    base, *tuned = (xp.reshape(model, (-1, tile.grain)) for model in (tile.base, *tile.tuned))
    values, differs = slerp_lines(base, tuned, t, origin, axis=1)
    return Fused(values=xp.reshape(values, (-1,)), kept=xp.reshape(differs, (-1,)))


@dataclass(frozen=True, kw_only=True)
class NuSlerp(Method):
    """Interpolate two fine-tunes on a sphere around their base.

    Attributes:
        weights: Weights of the two models, separated by a comma; only their ratio counts.
        vectors: What counts as one vector: the whole `tensor`, each of its `rows`, or each of its `columns`.
        origin: The centre of the sphere: the `base`, so that deltas are interpolated; or `zero`, and the first model
            is one of the two.
    """

    weights: PerModel = 1.0
    vectors: Vectors = "tensor"
    origin: Origin = "base"

    name: ClassVar[str] = "nuslerp"
    title: ClassVar[str] = "NuSLERP"
    source: ClassVar[str] = "mergekit 0.1"
    max_models: ClassVar[int | None] = 2
    per_model: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        each("weights", self.weights, finite)
        one_of("vectors", self.vectors, get_args(Vectors))
        one_of("origin", self.origin, get_args(Origin))

    @property
    def counts_base(self) -> bool:
        """The base is one of the two where the origin is zero."""
        return self.origin == "zero"

    @property
    def model_range(self) -> tuple[int, int]:
        """Exactly two models, the base among them where the origin is zero."""
        return (1, 1) if self.counts_base else (2, 2)

    @property
    def t(self) -> float:
        """`w_b/(w_a + w_b)`; half way where the weights cancel."""
        one, other = (as_tuple(self.weights) * 2)[:2]
        return 0.5 if abs(one + other) < 1e-6 else other / (one + other)

    def region(self, group: Group) -> Region:  # noqa: ARG002
        """Return what is interpolated as one vector."""
        if self.vectors == "tensor" or self.t in (0, 1):
            return "element"
        return "row" if self.vectors == "rows" else "matrix"

    def matrix(self, matrices: Matrices) -> Whole:
        """Return the interpolation of each column."""
        layout = plain_layout(matrices.group.shape, outputs=1)
        parts = [slerp_lines(base, tuned, self.t, self.origin, axis=0) for base, *tuned in matrices.stacked(layout)]
        return whole_of(layout, parts)

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the products tell all)
        """Take the inner products of whole tensors; lines need nothing beforehand."""
        if self.t in (0, 1):
            return scaling((float(self.t),) if self.origin == "zero" else (1.0 - self.t, float(self.t)))
        if self.vectors == "rows":
            return Map(function=slerp_rows, arguments=(self.t, self.origin))
        if self.vectors == "columns":
            return Map(function=delivered)
        span: LinearSpan = yield Pass(function=basis_products, combine=LinearSpan.of)
        if self.origin == "zero":
            return combination(interpolated(span, span.base, span.tuned()[0], self.t, linear_above=1.0))
        one, other = span.deltas()
        point: Vector = interpolated(span, one, other, self.t, linear_above=1.0)
        return combination(span.base + point)
