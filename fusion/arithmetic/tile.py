"""A run of elements of one tensor, as every method sees it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..errors import CurvatureError
from .curvature import Curvature
from .per_element import PerElement, computed
from .random import Key, random_words

TWO_32 = 4294967296.0


def checked_terms(name: str, curvature: Curvature, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return the sums of squares of a tensor of this shape, float64 arrays that broadcast to it; their sum is Σx².

    A grown vocabulary has more rows in the statistics than are fused: only the first `shape[0]` rows count.

    Raises:
        CurvatureError: A term does not broadcast to the shape, or holds a negative or non-finite sum.
    """
    found = []
    for term in curvature.terms:
        cut = term[: shape[0]] if term.ndim and shape and term.shape[0] > max(shape[0], 1) else term
        if cut.ndim != len(shape) or any(t not in (1, s) for t, s in zip(cut.shape, shape, strict=True)):
            raise CurvatureError(
                f"the statistics of `{name}` have shape {list(term.shape)}, the tensor has {list(shape)}",
                hint="calibrate the model that is fused",
            )
        if not (np.isfinite(cut).all() and (cut >= 0).all()):
            raise CurvatureError(f"the statistics of `{name}` hold a negative or non-finite sum of squares")
        found.append(cut)
    return tuple(found)


def _root_of_sum(*terms: np.ndarray) -> np.ndarray:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return np.sqrt(2.0 * total + 1.0)


def root_curvature(name: str, curvature: Curvature, shape: tuple[int, ...]) -> PerElement:
    """Return `sqrt(2·Σ terms + 1)` for a tensor of this shape, computed in float64 and rounded to float32.

    Args:
        curvature: With one term at least.

    Raises:
        CurvatureError: The statistics do not fit the tensor.
    """
    return computed(_root_of_sum, checked_terms(name, curvature, shape), shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class RawTile:
    """Elements `start … start + len(base) − 1` of a tensor as they are stored.

    Attributes:
        base: Stored dtype, shape (n,).
        tuned: One array a tuned model, each in its own stored dtype, shape (n,).
        keys: One a tuned model; a tile never crosses a multiple of 2³² elements.
        root: `sqrt(H)`, or None for `H = I`.
        grain: Elements that the method asked not to be cut apart: 1, or those of a row.
        prepared: What the method made of the group, or None.
        name: Of the output tensor, which together with `start` says what the elements are as long as a run's inputs
            stay; None where that does not hold.
    """

    start: int
    base: np.ndarray
    tuned: tuple[np.ndarray, ...]
    keys: tuple[Key, ...]
    root: PerElement | None
    grain: int = 1
    prepared: Any = None
    name: str | None = None

    def decode(self) -> Tile:
        """Return the tile in float32, or in float64 where any side stores float64, as NumPy arrays."""
        wide = any(array.dtype == np.float64 for array in (self.base, *self.tuned))
        dtype = np.float64 if wide else np.float32
        return Tile(
            start=self.start,
            base=self.base.astype(dtype),
            tuned=tuple(array.astype(dtype) for array in self.tuned),
            keys=self.keys,
            root=None if self.root is None else self.root.expand(self.start, len(self.base)),
            grain=self.grain,
            prepared=self.prepared,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """A tile ready for arithmetic, in NumPy or torch: what the definition of a method is written in.

    Attributes:
        base, tuned: float32 or float64, shape (n,).
        root: `sqrt(H)` of each element, float32, shape (n,), or None for `H = I`.
        grain, prepared: As in `RawTile`; `prepared` is NumPy's whatever the arrays are.
    """

    start: int
    base: Any
    tuned: tuple[Any, ...]
    keys: tuple[Key, ...]
    root: Any
    grain: int = 1
    prepared: Any = None

    @cached_property
    def deltas(self) -> tuple[Any, ...]:
        """`tuned − base`, one a tuned model."""
        return tuple(tuned - self.base for tuned in self.tuned)

    def draw(self, keep: Any, model: int = 0) -> Any:
        """Return which elements are kept when each is kept with its own probability; bool, shape (n,).

        Word and probability are compared in float32, `float32(word) < 2³²·keep`, whatever the weight's dtype. The
        relative precision of float32 keeps probabilities of 1e-9 meaningful. `keep >= 1` is always kept.
        """
        xp = array_namespace(self.base)
        indices = xp.arange(self.start, self.start + self.base.shape[0], dtype=xp.int64, device=self.base.device)
        words = xp.astype(random_words(indices, self.keys[model]), xp.float32)
        keep = xp.astype(keep, xp.float32)
        return (words < keep * TWO_32) | (keep >= 1)
