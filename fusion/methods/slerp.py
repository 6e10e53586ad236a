"""Spherical interpolation of two models.

    W = sin((1 − t)θ)/sin θ·W_a + sin(tθ)/sin θ·W_b,   θ the angle between W_a and W_b, as whole tensors

Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; for weights as published in mergekit: where the
cosine exceeds 0.9995 in size the interpolation is linear, which for a fine-tune and its base it nearly always is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..arithmetic.passes import Map, Pass, Reduction
from ..arithmetic.span import LinearSpan, Vector, basis_products, sine
from ..transforms.scale import add_scaled
from .checks import finite
from .combine import combination
from .method import Method

LINEAR_ABOVE = 0.9995


def interpolated(
    span: LinearSpan, one: Vector, other: Vector, t: float, *, linear_above: float = LINEAR_ABOVE
) -> Vector:
    """Return the point at t on the arc from one vector to the other; on the line where they are nearly parallel."""
    if not span.norm(one) or not span.norm(other) or abs(span.cosine(one, other)) > linear_above:
        return (1 - t) * one + t * other
    theta = span.angle(one, other)
    if sine(theta) < 1e-8:
        return (1 - t) * one + t * other
    return (sine((1 - t) * theta) * one + sine(t * theta) * other) / sine(theta)


@dataclass(frozen=True, kw_only=True)
class Slerp(Method):
    """Interpolate between two models on a sphere.

    Attributes:
        t: Place between the models: 0 is the first model, 1 the second.
    """

    t: float = 0.5

    name: ClassVar[str] = "slerp"
    title: ClassVar[str] = "SLERP"
    source: ClassVar[str] = "Shoemake, SIGGRAPH 1985"

    def __post_init__(self) -> None:
        finite("t", self.t)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base at 0, the tuned model at 1."""
        return "base" if self.t == 0 else "tuned" if self.t == 1 else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the products tell all)
        """Take the inner products; return the combination."""
        if self.identity is not None:
            return Map(function=add_scaled, arguments=(self.t,))
        span: LinearSpan = yield Pass(function=basis_products, combine=LinearSpan.of)
        vector = interpolated(span, span.base, span.tuned()[0], self.t)
        return combination(vector, {"cosine": span.cosine(span.base, span.tuned()[0])})
