"""`sqrt(H)` of AdaDARE-γ in a patch: the values that a tensor's elements repeat, or sums that they are computed of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ..arithmetic.per_element import Computed, PerElement, Repeated
from ..arithmetic.tile import root_of_sum


@dataclass(frozen=True, kw_only=True)
class RootEntry:
    """Where `sqrt(H)` is in a patch, and how a tensor's elements have it.

    Attributes:
        entry: The entry of the patch.
        repeat, inner: Of values, float32: element `i` has number `(i // (repeat·inner))·inner + i % inner`.
        terms: Of sums of squares, float64, one array after the other: the shape of each; they broadcast to the
            tensor's, and `sqrt(2·Σ + 1)` is rounded to float32. None of values.
    """

    entry: str
    repeat: int = 1
    inner: int = 1
    terms: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not (self.repeat > 0 and self.inner > 0 and self.repeat * self.inner < 1 << 62):
            raise ValueError("a curvature cannot repeat so")
        if any(size < 1 for shape in self.terms for size in shape):
            raise ValueError("a curvature has no elements")


def content_of(root: PerElement) -> bytes:
    """Return `sqrt(H)` as it is written."""
    if isinstance(root, Repeated):
        return root.values.astype("<f4").tobytes()
    assert root.function is root_of_sum  # the one thing that is computed
    return b"".join(array.astype("<f8").tobytes() for array in root.arrays)


def entry_of(root: PerElement, name: str) -> RootEntry:
    """Return what is said of `sqrt(H)` that is in an entry of this name."""
    if isinstance(root, Repeated):
        return RootEntry(entry=name, repeat=root.repeat, inner=root.inner)
    return RootEntry(entry=name, terms=tuple(array.shape for array in root.arrays))


def nbytes_of(said: RootEntry, shape: Sequence[int]) -> int:
    """Return how many bytes `sqrt(H)` of a tensor of a shape is written as."""
    if said.terms:
        return 8 * sum(map(prod, said.terms))
    return 4 * said.inner * -(-prod(shape) // (said.repeat * said.inner))


def root_from(said: RootEntry, content: bytes, shape: Sequence[int]) -> PerElement:
    """Return `sqrt(H)` of a tensor of a shape.

    Raises:
        ValueError: The content is none of it.
    """
    if not said.terms:
        values = np.frombuffer(content, "<f4")
        if values.nbytes != nbytes_of(said, shape) or not (np.isfinite(values).all() and (values >= 1).all()):
            raise ValueError("its curvature is none of its shape")
        return Repeated(values=values, repeat=said.repeat, inner=said.inner)
    values, arrays = np.frombuffer(content, "<f8"), []
    fits = len(shape) > 1 and values.nbytes == nbytes_of(said, shape)
    for term in said.terms:
        fits &= len(term) == len(shape) and all(own in (1, size) for own, size in zip(term, shape, strict=True))
    if not fits or not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError("its curvature is none of its shape")
    for term in said.terms:
        arrays.append(values[: prod(term)].reshape(term))
        values = values[prod(term) :]
    return Computed(function=root_of_sum, arrays=tuple(arrays), shape=tuple(shape))
