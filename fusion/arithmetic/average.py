"""Averages over models that know their inputs: what each model's delta weighs, by element or by matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .gram import cholesky, divided, mean_matrix, refuse_other_shapes
from .group import Group
from .per_element import PerElement, computed
from .sums import added
from .two_sided import apart, mean_squares


def shares(group: Group, weights: Sequence[float]) -> list[PerElement]:
    """Return `w_k·a_k / Σ_j w_j·a_j` of each tuned model, a_k the mean square of an element's input.

    An element that no model saw an input of counts by the weights alone.

    Raises:
        CurvatureError: The statistics do not fit the tensor.
    """
    sides = [mean_squares(group, curvature, 0.0) for curvature in group.tuned]
    alike = added(weights)

    def share(k: int) -> Callable[..., np.ndarray]:
        def of(*terms: np.ndarray) -> np.ndarray:
            parts = [w * own for w, own in zip(weights, apart(sides, terms), strict=True)]
            total: Any = sum(parts)
            return np.divide(parts[k], total, out=np.full(total.shape, weights[k] / alike), where=total > 0)

        return of

    arrays = tuple(term for side in sides for term in side.terms)
    return [computed(share(k), arrays, group.shape) for k in range(len(sides))]


def mean_matrices(group: Group, stack: int, device: Any) -> list[Any]:
    """Return E[x·xᵀ] of one of the stacked matrices in each tuned model, float64 torch tensors of shape (width, width).

    Zeros for a model that saw no input of it.

    Raises:
        CurvatureError: One is no sum of squares, or they do not fit together.
    """
    import torch

    refuse_other_shapes(group.name, group.tuned)
    width = next(c.gram.shape[-1] for c in group.tuned if c is not None and c.gram is not None)
    return [
        torch.zeros((width, width), dtype=torch.float64, device=device)
        if curvature is None or curvature.gram is None or not curvature.num_tokens
        else mean_matrix(group.name, curvature, stack, device)
        for curvature in group.tuned
    ]


def mixings(name: str, matrices: list[Any], *, dtype: Any, hint: str) -> list[Any]:
    """Return `A_k·(Σ_j A_j)⁻¹` of each matrix, torch tensors of shape (width, width); they add up to I.

    Args:
        matrices: Symmetric float64 torch tensors, positive definite together. The list is emptied.
        dtype: torch's, of what comes back.
        hint: What helps where they are not.

    Raises:
        MethodError: Their sum is not positive definite.
    """
    import torch

    total = torch.zeros_like(matrices[0])
    for matrix in matrices:
        total += matrix
    factor = cholesky(name, total, hint=hint)
    del total
    found = []
    while matrices:  # each is let go of before the next is solved for
        found.append(divided(matrices.pop(0), factor, dtype))
    return found
