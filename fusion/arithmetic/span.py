"""Geometry of whole tensors from their inner products alone: no vector is ever held, only its coefficients.

Slerp, the Karcher mean and Model Stock all return linear combinations of the models, with coefficients that depend on
inner products. One pass sums the products of base and deltas; the geometry is then done on a matrix of K + 1 rows. The
basis is base and deltas, not the models themselves: fine-tunes of one base are nearly parallel, and the angles between
them would drown in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from .sums import added, block_sums, exact_total, wide
from .tile import Tile

Vector = np.ndarray  # coefficients over (base, δ_1, …, δ_K)


def sine(angle: float) -> float:
    """Return the sine as the C library has it: NumPy's depends on the processor."""
    return math.sin(angle) if math.isfinite(angle) else math.nan


def cosine(angle: float) -> float:
    """Return the cosine as the C library has it."""
    return math.cos(angle) if math.isfinite(angle) else math.nan


def weighted(weights: Sequence[float], vectors: Sequence[Vector]) -> Vector:
    """Return the weighted sum, added up in the order given: a library for matrices adds as suits the processor."""
    total = np.zeros_like(vectors[0])
    for weight, vector in zip(weights, vectors, strict=True):
        total = total + weight * vector
    return total


def basis_products(tile: Tile) -> Any:
    """Return block sums of `b_i·b_j`, i <= j, over the basis (base, δ_1, …); shape ((K + 1)(K + 2)/2, num_blocks)."""
    xp = array_namespace(tile.base)
    basis = [wide(vector) for vector in (tile.base, *tile.deltas)]
    return xp.stack([block_sums(one * other) for i, one in enumerate(basis) for other in basis[i:]])


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearSpan:
    """The linear combinations of base and deltas of one tensor.

    Attributes:
        products: Inner products of the basis, (K + 1, K + 1).
    """

    products: np.ndarray

    @classmethod
    def of(cls, tiles: Sequence[np.ndarray]) -> LinearSpan:
        """Combine what `basis_products` returned of each tile."""
        return cls.from_products(exact_total(tiles))

    @classmethod
    def from_products(cls, upper: np.ndarray) -> LinearSpan:
        """Build from the products in the order of `basis_products`."""
        size = round((np.sqrt(8 * len(upper) + 1) - 1) / 2)
        products = np.zeros((size, size))
        products[np.triu_indices(size)] = upper
        return cls(products=products + np.triu(products, 1).T)

    @property
    def base(self) -> Vector:
        """The base."""
        return np.eye(len(self.products))[0]

    def deltas(self) -> list[Vector]:
        """Return the deltas of the tuned models."""
        return list(np.eye(len(self.products))[1:])

    def tuned(self) -> list[Vector]:
        """Return the tuned models."""
        return [self.base + delta for delta in self.deltas()]

    def dot(self, one: Vector, other: Vector) -> float:
        """Return the inner product."""
        return added((one[:, None] * self.products * other).ravel().tolist())

    def norm(self, vector: Vector) -> float:
        """Return the Euclidean norm."""
        return math.sqrt(max(self.dot(vector, vector), 0.0))

    def cosine(self, one: Vector, other: Vector) -> float:
        """Return the cosine of the angle; 0 where a vector is zero."""
        norms = self.norm(one) * self.norm(other)
        return float(np.clip(self.dot(one, other) / norms, -1, 1)) if norms else 0.0

    def angle(self, one: Vector, other: Vector) -> float:
        """Return the angle, precise for nearly parallel vectors too, where the cosine's arc is not."""
        norm = self.norm(one)
        along = self.dot(one, other) / norm**2
        across = self.norm(other - along * one)
        return math.atan2(across, along * norm)
