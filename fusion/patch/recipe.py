"""Recipes whose masks a seed makes: what a fuse did to a tensor, as one map over its elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, final

import numpy as np

from ..arithmetic.passes import Map
from ..arithmetic.per_element import PerElement, Repeated
from ..arithmetic.tile import RawTile
from ..dtypes import DTYPES
from ..kernels import KERNELS
from ..kernels import adadare as adadare_kernels
from ..kernels import dare as dare_kernels
from ..kernels.tiles import root_at, scratch_block
from ..methods import adadare, dare
from ..native import TAKEN_FOR, Kernel
from ..transforms.scale import add_scaled
from .contexts import DrawnHint, Hint, Seed, Threshold
from .roots import RootEntry, entry_of, root_from

RECIPE_DTYPES = ("BF16", "F16", "F32")
ONES = Repeated(values=np.ones(1, np.float32), repeat=1 << 40, inner=1)  # H = I
_RESCALE = Kernel("patch_decode", "rescale", "uf")
_RESCALE_BY_ROOT = Kernel("patch_decode", "rescale_by_root", "u Fuu uff F")
MAPS: dict[str, Callable[..., Any]] = {"dare": dare.drop_and_rescale, "adadare": adadare.drop_and_rescale}


@dataclass(frozen=True, kw_only=True)
class RecipeEntry:
    """A recipe as a patch's contents have it.

    Attributes:
        method: `dare` or `adadare`.
        seed, name, stream: Of the uniform numbers.
        number: DARE's probability of being kept, AdaDARE's c.
        strength: DARE's λ, AdaDARE's γ.
        rows: How many of the tensor's leading rows it is about; the others of a grown vocabulary were copied.
        root: Of AdaDARE `sqrt(H)`; else None.
    """

    method: Literal["dare", "adadare"]
    seed: int
    name: str
    stream: int = 0
    number: float
    strength: float
    rows: int
    root: RootEntry | None = None

    def __post_init__(self) -> None:
        most = 1.0 if self.method == "dare" else float(np.finfo(np.float32).max)
        least = float(np.finfo(np.float32).tiny)
        if not (least <= self.number <= most and math.isfinite(self.strength)):
            raise ValueError(f"{self.method} with {self.number} and {self.strength} is out of range")
        if (self.root is None) != (self.method == "dare") or self.rows < 0:
            raise ValueError(f"{self.method} has no such curvature")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SeededRecipe:
    """A recipe with its curvature at hand.

    Attributes:
        entry: What is written of it.
        num_elements: How many of the tensor's elements it is about.
        root: `sqrt(H)`; None for DARE.
    """

    entry: RecipeEntry
    num_elements: int
    root: PerElement | None

    @property
    def seed(self) -> Seed:
        """Which uniform numbers it draws."""
        return Seed(seed=self.entry.seed, name=self.entry.name, stream=self.entry.stream)

    @property
    def hint(self) -> Hint:
        """What it tells of which elements differ."""
        if self.root is None:
            return DrawnHint(seed=self.seed, keep=self.entry.number)
        return Threshold(seed=self.seed, c=self.entry.number, root=self.root)

    def rescale(
        self, base: np.ndarray, tuned: np.ndarray, dtype: str, start: int, strength: float | None, out: np.ndarray
    ) -> None:
        """Put the words that the recipe makes of the base's and the fine-tune's into `out`.

        Args:
            tuned: The base's words where it keeps nothing.
            strength: In place of the recipe's own.
        """
        kind = DTYPES[dtype].numpy
        assert kind is not None  # recipes are of floats
        stored = [words.view(kind) for words in (base, tuned, out)]
        chosen, number = self.entry.strength if strength is None else strength, self.entry.number
        if self.root is None:
            _RESCALE(stored, len(base), chosen / number)
        else:
            _RESCALE_BY_ROOT(
                stored, len(base), *root_at(self.root, start, len(base)), start, number, chosen, scratch_block()
            )


def scaled(base: np.ndarray, tuned: np.ndarray, dtype: str, strength: float) -> np.ndarray:
    """Return the words of `base + strength·(tuned − base)`."""
    kind = DTYPES[dtype].numpy
    assert kind is not None  # of floats alone
    out = np.empty_like(base)
    tile = RawTile(start=0, base=base.view(kind), tuned=(tuned.view(kind),), keys=(), root=None)
    into = out.view(kind)
    kernel = KERNELS.find(add_scaled, (strength,), tile, into)
    if kernel is not None:
        kernel(tile, into, strength)
    else:
        with np.errstate(all="ignore"):
            into[:] = add_scaled(tile.decode(), strength).values.astype(kind)
    return out


def recipe_of(
    wanted: Map, tile: RawTile, seed: Seed, shape: Sequence[int], put_root: Callable[[PerElement], str]
) -> SeededRecipe | None:
    """Return the recipe that a map over a tile is; None where it is none that a patch can say.

    Args:
        shape: Of what is fused of the tensor.
        put_root: Puts `sqrt(H)` into the patch, and returns the name of its entry there.
    """
    method = next((name for name, function in MAPS.items() if wanted.function is function), None)
    if method is None or len(tile.tuned) != 1 or tile.base.dtype not in TAKEN_FOR:
        return None
    number, strength = (float(value) for value in wanted.arguments)
    root = None if method == "dare" else tile.root or ONES
    try:
        entry = RecipeEntry(
            method=method,  # pyright: ignore[reportArgumentType]
            seed=seed.seed,
            name=seed.name,
            stream=seed.stream,
            number=number,
            strength=strength,
            rows=shape[0] if shape else 1,
            root=entry_of(root, put_root(root)) if root is not None else None,
        )
    except ValueError:
        return None
    return SeededRecipe(entry=entry, num_elements=prod(shape), root=root)


def kept_words(recipe: SeededRecipe, tile: RawTile) -> np.ndarray | None:
    """Return the fine-tune's words where the recipe keeps them, else the base's; None where dtypes differ."""
    tuned = tile.tuned[0]
    if tuned.dtype != tile.base.dtype:
        return None
    out = np.empty_like(tuned)
    if recipe.root is None:
        dare_kernels.keep_tuned(tile, out, recipe.entry.number)
    else:
        adadare_kernels.keep_tuned(replace(tile, root=recipe.root), out, recipe.entry.number)
    return out.view(f"u{out.itemsize}")


def recipe_from(entry: RecipeEntry, shape: Sequence[int], dtype: str, content: Callable[[str], bytes]) -> SeededRecipe:
    """Return the recipe of a tensor, with its curvature.

    Args:
        content: Gives what an entry of the patch holds.

    Raises:
        ValueError: It is none of such a tensor.
    """
    if dtype not in RECIPE_DTYPES or entry.rows > (shape[0] if shape else 1):
        raise ValueError(f"no recipe makes {dtype} {list(shape)}")
    own = [entry.rows, *shape[1:]] if shape else []
    root = None if entry.root is None else root_from(entry.root, content(entry.root.entry), own)
    return SeededRecipe(entry=entry, num_elements=prod(own), root=root)
