"""Stored elements as words of 8, 16 or 32 bits, and what a word's bits mean."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..dtypes import DTYPES

FRAME = 1 << 20  # words that are coded together
DIRECT = 32  # numbers below are a token each


@dataclass(frozen=True, kw_only=True)
class WordForm:
    """How a dtype is cut into words.

    Attributes:
        word: uint8, uint16 or uint32.
        is_float: Whether a word is a float with a sign, so that its bits are ordered like its value; else an integer.
        shift, mask: Where the exponent of a float is; a mask of 0 where there is none.
    """

    word: np.dtype
    is_float: bool
    shift: int = 0
    mask: int = 0

    @property
    def sign(self) -> int:
        """The highest bit of a word."""
        return 1 << (8 * self.word.itemsize - 1)

    @property
    def alphabet(self) -> int:
        """The number of tokens of differences between words."""
        return DIRECT + 4 * (8 * self.word.itemsize - 5)

    @property
    def letter(self) -> str:
        """What a kernel's signature calls a pointer to words."""
        return {1: "B", 2: "H", 4: "W"}[self.word.itemsize]


@cache
def form_of(dtype: str) -> WordForm:
    """Return the form of a dtype by its code: wide ones are two words an element, those below a byte are packed."""
    if dtype in ("BF16", "F16", "F32"):
        shift, mask = {"BF16": (7, 0xFF), "F16": (10, 0x1F), "F32": (23, 0xFF)}[dtype]
        return WordForm(
            word=np.dtype(np.uint32 if dtype == "F32" else np.uint16), is_float=True, shift=shift, mask=mask
        )
    words = {16: np.uint16, 32: np.uint32, 64: np.uint32}
    return WordForm(word=np.dtype(words.get(DTYPES[dtype].bits, np.uint8)), is_float=False)


def num_words(dtype: str, num_elements: int) -> int:
    """Return how many words elements take."""
    return num_elements * DTYPES[dtype].bits // 8 // form_of(dtype).word.itemsize
