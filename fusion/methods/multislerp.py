"""Multi-SLERP: barycentric interpolation of any number of models on a hypersphere.

    u_k = v_k/‖v_k‖,  m = Σ w_k·u_k / ‖Σ w_k·u_k‖                 tangent point
    τ   = Σ w_k·(u_k − ⟨u_k, m⟩·m)                                tangent mean
    v   = (Σ w_k·‖v_k‖)·(cos‖τ‖·m + sin‖τ‖·τ/‖τ‖)

with v_k = δ_k and the base added, or v_k = W_k (`origin: zero`). Goddard, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea,
as published in mergekit. The projection onto the tangent space is orthogonal, not the logarithm of the sphere; with
weights that add up to 1 τ then vanishes up to rounding, and v is the mean direction with the mean norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from ..arithmetic.passes import Pass, Reduction
from ..arithmetic.per_model import PerModel, as_tuple
from ..arithmetic.span import LinearSpan, Vector, basis_products, cosine, sine, weighted
from ..arithmetic.sums import added
from ..errors import MethodError
from .checks import each, finite, one_of
from .combine import combination
from .method import Method
from .nuslerp import Origin

TINY = 1e-8


def barycentre(span: LinearSpan, vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """Return v of the equations above.

    Raises:
        MethodError: The directions cancel.
    """
    norms = [span.norm(vector) for vector in vectors]
    units = [vector / (norm or 1.0) for vector, norm in zip(vectors, norms, strict=True)]
    mean = weighted(weights, units)
    size = span.norm(mean)
    if size < TINY:
        if len(vectors) == 2 or not any(norms):
            return weighted(weights, vectors)
        raise MethodError("the weighted directions of the models cancel, so they have no mean on the sphere")
    mean = mean / size
    tangent = weighted(weights, [unit - span.dot(unit, mean) * mean for unit in units])
    length = span.norm(tangent)
    direction = tangent / length if length else tangent
    scale = added(weight * norm for weight, norm in zip(weights, norms, strict=True))
    return scale * (cosine(length) * mean + sine(length) * direction)


@dataclass(frozen=True, kw_only=True)
class MultiSlerp(Method):
    """Average the directions of any number of models on a sphere around their base.

    Attributes:
        weights: w, one for each model, separated by commas, or one for all.
        normalize: Divide the weights by their sum.
        origin: The centre of the sphere: the `base`, so that deltas are averaged; or `zero`, and the first model is
            averaged too.
    """

    weights: PerModel = 1.0
    normalize: bool = True
    origin: Origin = "base"

    name: ClassVar[str] = "multislerp"
    title: ClassVar[str] = "Multi-SLERP"
    source: ClassVar[str] = "mergekit 0.1"
    min_models: ClassVar[int] = 0
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        each("weights", self.weights, finite)
        one_of("origin", self.origin, get_args(Origin))
        if self.normalize and isinstance(self.weights, tuple) and sum(self.weights) == 0:
            raise MethodError("weights that add up to 0 cannot be normalised")

    @property
    def counts_base(self) -> bool:
        """The base is one of the models where the origin is zero."""
        return self.origin == "zero"

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """A model that is alone, with a weight of 1 in all."""
        alone = self.origin == "zero" and isinstance(self.weights, tuple) and len(self.weights) == 1
        return "base" if alone and (self.normalize or self.weights == (1.0,)) else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the products tell all)
        """Take the inner products; return the combination."""
        span: LinearSpan = yield Pass(function=basis_products, combine=LinearSpan.of)
        weights = np.asarray(as_tuple(self.weights))
        if self.normalize:
            weights = weights / added(weights.tolist())
        if self.origin == "zero":
            return combination(barycentre(span, [span.base, *span.tuned()], weights.tolist()))
        return combination(span.base + barycentre(span, span.deltas(), weights.tolist()))
