"""Karcher mean: the point on the sphere with the least sum of squared arcs to the models' directions.

    m ← exp_m(Σ w_k·log_m(u_k)),   log_m(u) = θ/sin θ·(u − cos θ·m),   θ = ∠(m, u)
    W = (Σ w_k·‖W_k‖)·m

until the step is shorter than `tolerance`. Grove & Karcher, How to conjugate C¹-close group actions, 1973; Karcher,
Riemannian center of mass, 1977. For weights as published in mergekit (arXiv:2603.04972), which weighs all alike. There
the angles come from float32 cosines and those of fine-tunes of one base are lost in rounding; here they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ..arithmetic.passes import Pass, Reduction
from ..arithmetic.per_model import PerModel, as_tuple
from ..arithmetic.span import LinearSpan, Vector, basis_products, cosine, sine, weighted
from ..arithmetic.sums import added
from ..errors import MethodError
from .checks import at_least_zero, each
from .combine import combination
from .method import Method


def karcher_mean(
    span: LinearSpan, units: Sequence[Vector], weights: Sequence[float], *, max_steps: int, tolerance: float
) -> tuple[Vector, int]:
    """Return the mean direction and the number of steps that were taken."""
    mean = weighted(weights, units)
    size = span.norm(mean)
    mean = mean / size if size > tolerance else units[0]
    for step in range(max_steps):
        tangent = np.zeros_like(mean)
        for unit, weight in zip(units, weights, strict=True):
            theta = span.angle(mean, unit)
            across = unit - span.dot(mean, unit) * mean
            if sine(theta) > 1e-12:
                tangent = tangent + weight * theta / sine(theta) * across
        length = span.norm(tangent)
        if length < tolerance:
            return mean, step
        mean = cosine(length) * mean + sine(length) * tangent / length
        mean = mean / span.norm(mean)
    return mean, max_steps


@dataclass(frozen=True, kw_only=True)
class Karcher(Method):
    """Average the directions of models by their centre of mass on a sphere; the first model counts like the others.

    Attributes:
        weights: w, one for each model, the first included, separated by commas, or one for all.
        max_steps: Largest number of steps.
        tolerance: Stop at a step of this length.
    """

    weights: PerModel = 1.0
    max_steps: int = 10
    tolerance: float = 1e-5

    name: ClassVar[str] = "karcher"
    title: ClassVar[str] = "Karcher mean"
    source: ClassVar[str] = "arXiv:2603.04972"
    min_models: ClassVar[int] = 0
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights",)

    def __post_init__(self) -> None:
        each("weights", self.weights, at_least_zero)
        at_least_zero("tolerance", self.tolerance)
        if isinstance(self.weights, tuple) and not any(self.weights):
            raise MethodError("weights that add up to 0 cannot be normalised")

    @property
    def counts_base(self) -> bool:
        """The base is one of the models."""
        return True

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """A model that is alone."""
        return "base" if isinstance(self.weights, tuple) and len(self.weights) == 1 else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the products tell all)
        """Take the inner products; return the combination."""
        span: LinearSpan = yield Pass(function=basis_products, combine=LinearSpan.of)
        models = [span.base, *span.tuned()]
        weights = np.asarray(as_tuple(self.weights)) / added(as_tuple(self.weights))
        norms = np.array([span.norm(model) for model in models])
        used = [k for k in range(len(models)) if norms[k] > self.tolerance and weights[k] > 0]
        if not used or all(not span.norm(delta) for delta in span.deltas()):
            return combination(span.base)
        units = [models[k] / norms[k] for k in used]
        shares = (weights[used] / weights[used].sum()).tolist()
        mean, steps = karcher_mean(span, units, shares, max_steps=self.max_steps, tolerance=self.tolerance)
        return combination(added((weights * norms).tolist()) * mean, {"steps": steps})
