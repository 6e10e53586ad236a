"""What several sides of general data measured of one tensor of a base, added up with a weight each: `G = Σ w_k·G_k`."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping, Sequence

import numpy as np

from ..errors import CurvatureError
from .curvature import Curvature


def weighted_sum(parts: Sequence[tuple[float, Curvature]], grams: MutableMapping[Hashable, np.ndarray]) -> Curvature:
    """Return the curvature whose means over tokens are the weighted sum of those of its parts.

    The sums of a side that saw n_k of all n tokens count w_k·n/n_k times. A side that has not reached the tensor adds
    nothing. One part of weight 1 is returned as it is. Σ x·xᵀ is kept where all parts have it.

    Args:
        parts: Weight and curvature of each side that has seen the tensor; at least one.
        grams: What was added up before, to which this one's is added: tensors that see the same inputs share it.

    Raises:
        CurvatureError: The sides saw tensors of other shapes.
    """
    reached = [(weight, curvature) for weight, curvature in parts if curvature.num_tokens]
    if not reached or (len(parts) == 1 and parts[0][0] == 1):
        return parts[0][1]
    total = sum(curvature.num_tokens for _, curvature in reached)
    factors = [weight * total / curvature.num_tokens for weight, curvature in reached]
    terms: dict[tuple[int, ...], np.ndarray] = {}
    for factor, (_, curvature) in zip(factors, reached, strict=True):
        for term in curvature.terms:
            terms[term.shape] = terms.get(term.shape, 0) + factor * term
    known = [curvature.gram for _, curvature in reached if curvature.gram is not None]
    if len(known) < len(reached):
        return Curvature(terms=tuple(terms.values()), num_tokens=total)
    if len({gram.shape for gram in known}) > 1:
        shapes = " and ".join(str(list(gram.shape)) for gram in known)
        raise CurvatureError(f"general sides have full Hessians of shapes {shapes} for one tensor")
    key = tuple(zip(map(id, known), factors, strict=True))
    if key not in grams:
        added = np.zeros(known[0].shape, np.float64)
        for factor, gram in zip(factors, known, strict=True):
            added += factor * gram.astype(np.float64)
        grams[key] = added.astype(np.float32)
    return Curvature(terms=tuple(terms.values()), num_tokens=total, gram=grams[key])
