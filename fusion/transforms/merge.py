"""`total(weights)` adds up the models' deltas, `elect(weights)` averages those that agree with an elected sign.

Yadav et al., TIES-Merging, NeurIPS 2023 (arXiv:2306.01708), steps 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import array_namespace

from ..arithmetic.per_model import PerModel, as_tuple
from ..arithmetic.sums import added

Election = Literal["weighted", "unweighted"]


def elected_sign(deltas: Sequence[Any], weights: Sequence[float], election: Election = "weighted") -> Any:
    """Return the sign, +1 or -1, of each element's sum over the models; a zero sum elects +1.

    Args:
        deltas: One array a model, shape (n,).
        election: Whether the summands are weighted. The paper has no weights; PEFT elects without them.
    """
    xp = array_namespace(deltas[0])
    total = xp.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total = total + (weight * delta if election == "weighted" else delta)
    return xp.where(total >= 0, xp.ones_like(total), -xp.ones_like(total))


def agreeing(deltas: Sequence[Any], weights: Sequence[float], election: Election = "weighted") -> list[Any]:
    """Return for each model where its (weighted) delta has the elected sign; bool, shape (n,). Zero never agrees."""
    sign = elected_sign(deltas, weights, election)
    signed = [
        weight * delta if election == "weighted" else delta for delta, weight in zip(deltas, weights, strict=True)
    ]
    return [(delta * sign) > 0 for delta in signed]


def weighted_sum(arrays: Sequence[Any], weights: Sequence[float]) -> Any:
    """Return `Σ_k w_k·x_k`, added in the order of the models."""
    total = weights[0] * arrays[0]
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        total = total + weight * array
    return total


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How several deltas become one: `Σ w_k·m_k·δ_k`, divided by `Σ w_k·m_k` where that is asked for.

    Attributes:
        weights: One a model.
        election: m_k is 1 where the model agrees with the elected sign; None is 1 everywhere.
        normalize: Whether to divide, so that weights of any size give a mean.
        by_number: Divide by the number that agree in place of their weights, as PEFT does: weights set the strength.
    """

    weights: tuple[float, ...]
    election: Election | None = None
    normalize: bool = False
    by_number: bool = False

    @property
    def sole(self) -> int | None:
        """The model that alone has a part in the result, if there is one: a weight of 0 takes the others out."""
        parts = [k for k, weight in enumerate(self.weights) if weight != 0]
        counts = len(self.weights) > 1 and self.election == "unweighted"  # then all have a vote
        return parts[0] if len(parts) == 1 and not counts else None

    @property
    def sole_factor(self) -> float | None:
        """By what the delta of the sole model is multiplied, or None."""
        if self.sole is None:
            return None
        return 1.0 if self.normalize and not self.by_number else self.weights[self.sole]

    def coefficients(self, scale: float) -> tuple[float, ...]:
        """Return by what each delta is multiplied in a sum: `λ·w_k`, divided by `Σw` where that is asked for."""
        divisor = (added(self.weights) if self.normalize else 1.0) or 1.0
        return tuple(scale * weight / divisor for weight in self.weights)

    def merge(self, deltas: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Return the merged delta, shape (n,), and where each model had a part in it."""
        xp = array_namespace(deltas[0])
        parts = [(delta != 0) & (weight != 0) for delta, weight in zip(deltas, self.weights, strict=True)]
        divisor: Any = added(self.weights)
        if self.election is not None:
            parts = agreeing(deltas, self.weights, self.election)
            masks = [xp.astype(part, deltas[0].dtype) for part in parts]
            deltas = [delta * mask for delta, mask in zip(deltas, masks, strict=True)]
            divisor = weighted_sum(masks, (1.0,) * len(masks) if self.by_number else self.weights)
            divisor = xp.where(divisor == 0, xp.ones_like(divisor), divisor)
        merged = weighted_sum(deltas, self.weights)
        if self.normalize and (self.election is not None or divisor != 0):
            merged = merged / divisor
        return merged, parts


def total(weights: PerModel, *, normalize: bool = False) -> Merging:
    """Return the weighted sum, or the mean where weights are normalised."""
    return Merging(weights=as_tuple(weights), normalize=normalize)


def elect(weights: PerModel, election: Election = "weighted", *, normalize: bool = True) -> Merging:
    """Return TIES' merging: `unweighted`, the mean is over the number that agree, as all have one vote."""
    by_number = election == "unweighted"
    return Merging(weights=as_tuple(weights), election=election, normalize=normalize, by_number=by_number)
