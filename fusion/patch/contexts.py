"""What both sides know of an element before its difference is read: the base's exponent, and what a seed has drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, final

import numpy as np

from ..arithmetic.per_element import PerElement
from ..arithmetic.random import SEGMENT, Key, tensor_key
from ..kernels.tiles import root_at, scratch_block, scratch_words
from ..native import Kernel, address
from .forms import WordForm
from .room import room

NEVER = 255  # the context of an element that is the base's for certain

_THRESHOLDS = Kernel("patch", "thresholds", "u Fuu uuuf F H")


@cache
def _kernel(name: str, letter: str) -> Kernel:
    signatures = {
        "top_exponent": f"{letter} u uu W",
        "contexts": f"{letter} u uuu B",
        "scaled_contexts": f"{letter} u uuu uu BB B",
        "drawn_contexts": f"{letter} u uuu uuuf B",
        "threshold_contexts": f"{letter}H u uuuu B",
    }
    return Kernel("patch", name, signatures[name])


def top_exponent(words: np.ndarray, form: WordForm) -> int:
    """Return the largest exponent among words; 0 where they have none."""
    if not form.mask:
        return 0
    found = np.zeros(1, np.uint32)
    _kernel("top_exponent", form.letter)((), address(words), len(words), form.shift, form.mask, address(found))
    return int(found[0])


class Hint(ABC):
    """What a recipe tells of which elements differ from the base.

    Attributes:
        draws: Whether it says of some that they cannot.
        num_contexts: Without `NEVER`.
    """

    draws: ClassVar[bool] = True
    num_contexts: ClassVar[int] = 16

    def prepare(self, start: int, count: int) -> np.ndarray | None:
        """Return what contexts are made of beside the base, of elements `start … start + count − 1`, or None."""
        del start, count

    def highest(self, prepared: np.ndarray | None, base: np.ndarray, target: np.ndarray) -> int:
        """Return the parameter `high` of a frame."""
        del prepared, base, target
        return 0

    @abstractmethod
    def contexts(self, words: np.ndarray, form: WordForm, frame: Frame, prepared: np.ndarray | None) -> np.ndarray:
        """Return the context of each of the base's words, uint8."""

    @abstractmethod
    def decoder(self, frame: Frame, count: int) -> tuple[str, str, tuple[float, ...]]:
        """Return the kernel that decodes so many words, its signature and its arguments, of what a hint tells."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """What the contexts of a frame's words are made of.

    Attributes:
        start: The first word's place in the tensor.
        top: The largest exponent among the base's words.
        high: The highest bucket of thresholds at which an element differs.
        is_dense: For decoding: whether each context has a table.
    """

    start: int
    top: int
    high: int
    is_dense: bool = False


@final
@dataclass(frozen=True, kw_only=True)
class Plain(Hint):
    """Nothing beyond the base's exponent."""

    draws: ClassVar[bool] = False

    def contexts(self, words: np.ndarray, form: WordForm, frame: Frame, prepared: np.ndarray | None) -> np.ndarray:
        """Return how far each exponent is below `top`, at most 15."""
        del prepared
        out = room("contexts of a frame", len(words), np.uint8)
        kernel = _kernel("contexts", form.letter)
        kernel((), address(words), len(words), form.shift, form.mask, frame.top, address(out))
        return out

    def decoder(self, frame: Frame, count: int) -> tuple[str, str, tuple[float, ...]]:
        """Return the plain one."""
        del count
        return "decode", "u", (frame.is_dense,)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SizedHint(Hint):
    """By how much the elements of its row and of its column differ, beside the base's exponent.

    Attributes:
        columns: Of the tensor: the size of its last axis.
        rows, of_columns: log2 of |δ| in quarters of octaves, of each row that the frame has part of, and of each
            column; uint8, contiguous.
    """

    columns: int
    rows: np.ndarray
    of_columns: np.ndarray

    draws: ClassVar[bool] = False
    num_contexts: ClassVar[int] = NEVER

    def contexts(self, words: np.ndarray, form: WordForm, frame: Frame, prepared: np.ndarray | None) -> np.ndarray:
        """Return by how many steps elements are likely to differ, in half octaves."""
        del prepared
        out = room("contexts of a frame", len(words), np.uint8)
        place = frame.start, self.columns, address(self.rows), address(self.of_columns)
        kernel = _kernel("scaled_contexts", form.letter)
        kernel((), address(words), len(words), form.shift, form.mask, frame.top, *place, address(out))
        return out

    def decoder(self, frame: Frame, count: int) -> tuple[str, str, tuple[float, ...]]:
        """Return the one for rows and columns."""
        del count
        found = frame.start, self.columns, address(self.rows), address(self.of_columns)
        return "decode_scaled", "u uu BB", (frame.is_dense, *found)


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Which uniform numbers a tensor's elements have."""

    seed: int
    name: str
    stream: int = 0

    def key(self, start: int) -> Key:
        """Return the key of the elements from `start` to the end of its segment."""
        return tensor_key(self.seed, self.name, segment=start // SEGMENT, stream=self.stream)


@final
@dataclass(frozen=True, kw_only=True)
class DrawnHint(Hint):
    """DARE: an element can differ only where its uniform number is below `keep`."""

    seed: Seed
    keep: float

    def contexts(self, words: np.ndarray, form: WordForm, frame: Frame, prepared: np.ndarray | None) -> np.ndarray:
        """Return how far exponents are below `top`, and `NEVER` where nothing was drawn."""
        del prepared
        out, key = room("contexts of a frame", len(words), np.uint8), self.seed.key(frame.start)
        place = frame.start, key.low, key.high, self.keep
        kernel = _kernel("drawn_contexts", form.letter)
        kernel((), address(words), len(words), form.shift, form.mask, frame.top, *place, address(out))
        return out

    def decoder(self, frame: Frame, count: int) -> tuple[str, str, tuple[float, ...]]:
        """Return the one that draws."""
        del count
        key = self.seed.key(frame.start)
        return "decode_drawn", "uuuf", (frame.start, key.low, key.high, self.keep)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Threshold(Hint):
    """AdaDARE-γ: an element is kept with probability `c·sqrt(H)·|δ|`, so that its uniform number bounds |δ| below."""

    seed: Seed
    c: float
    root: PerElement

    num_contexts: ClassVar[int] = 240

    def prepare(self, start: int, count: int) -> np.ndarray:
        """Return the bucket of each element's bound: quarters of octaves."""
        out, key = room("buckets of a frame", count, np.uint16), self.seed.key(start)
        of_root = root_at(self.root, start, count)
        _THRESHOLDS((), count, *of_root, start, key.low, key.high, self.c, scratch_block(), address(out))
        return out

    def highest(self, prepared: np.ndarray | None, base: np.ndarray, target: np.ndarray) -> int:
        """Return the highest bucket in which an element differs."""
        assert prepared is not None
        return int(prepared[base != target].max(initial=0))

    def contexts(self, words: np.ndarray, form: WordForm, frame: Frame, prepared: np.ndarray | None) -> np.ndarray:
        """Return buckets below `high`, at most 14, with exponents; `NEVER` above `high`."""
        assert prepared is not None
        out = room("contexts of a frame", len(words), np.uint8)
        kernel = _kernel("threshold_contexts", form.letter)
        place = form.shift, form.mask, frame.top, frame.high
        kernel((), address(words), address(prepared), len(words), *place, address(out))
        return out

    def decoder(self, frame: Frame, count: int) -> tuple[str, str, tuple[float, ...]]:
        """Return the one that has a threshold for each element."""
        start, key = frame.start, self.seed.key(frame.start)
        of_root, found = root_at(self.root, start, count), (start, key.low, key.high, self.c)
        return (
            "decode_thresholds",
            "u Fuu uuuf F H",
            (frame.high, *of_root, *found, scratch_block(), scratch_words()),
        )
