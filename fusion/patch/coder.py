"""A frame: the differences of up to 2²⁰ words, coded by rANS with a table for each of a few contexts.

What is written is told in `docs/patch-format.md`. The arithmetic is that of J. Duda, Asymmetric numeral systems
(arXiv:1311.2540), with 32-bit states and 16-bit words, eight states in turn, as in F. Giesen's `ryg_rans`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np

from ..kernels.native import Kernel, address
from .contexts import NEVER, Frame, Hint, top_exponent
from .forms import WordForm
from .room import room

PROBABILITY_BITS = 12
TOTAL = 1 << PROBABILITY_BITS
MOST_TABLES = 48
NUM_STATES = 8
NONE = 0xFFFFFFFF  # where the entries of a context begin that has no table
LOWEST = 1 << 16  # a coder's state at the end of decoding
HEAD = struct.Struct("<HHBB")  # top, high, number of tables, number of runs of contexts
SIZES = struct.Struct("<II8I")  # words, bits, states

_SHARE = Kernel("patch", "share_tables", "W uu D u DD I I")
_ENCODE = Kernel("patch", "encode", "BB u W WQ H u W W")
_COUNT = Kernel("patch", "count_tokens", "BB u uu W")
# Of numbers from 1 to 2 at the middle of each of 2,048 steps.
_LOGARITHMS = np.log2(1 + (np.arange(2048) + 0.5) / 2048)


@cache
def _kernel(name: str, letter: str) -> Kernel:
    signatures = {
        "tokens": f"{letter}{letter} u uu B u {letter} B",
        "compact": f"BB{letter} u W W",
        "append_bits": f"B{letter} u W W",
    }
    return Kernel("patch", name, signatures[name])


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """Frequencies of tokens.

    Attributes:
        table_of: The table of each context, or `NEVER`; uint8 [256].
        frequencies: Of each token, out of 4,096; uint32 [tables, alphabet].
    """

    table_of: np.ndarray
    frequencies: np.ndarray

    @property
    def entries(self) -> np.ndarray:
        """Start and, 16 bits higher, frequency of each token."""
        starts = np.cumsum(self.frequencies, axis=1, dtype=np.uint32) - self.frequencies
        return np.ascontiguousarray(starts | (self.frequencies << np.uint32(16)), np.uint32)

    @property
    def inverses(self) -> np.ndarray:
        """2⁴⁴ over each frequency, rounded up."""
        return np.uint64(1 << 44) // np.maximum(self.frequencies, 1).astype(np.uint64) + (
            np.uint64(1 << 44) % np.maximum(self.frequencies, 1).astype(np.uint64) > 0
        )

    def pack(self, top: int, high: int) -> bytes:
        """Return the tables as they are written."""
        ends = np.flatnonzero(np.diff(self.table_of)) + 1
        runs = [
            bytes([self.table_of[start], stop - start - 1])
            for start, stop in zip([0, *ends], [*ends, 256], strict=True)
        ]
        parts = [HEAD.pack(top, high, len(self.frequencies), len(runs) - 1), *runs]
        lasts = self.frequencies.shape[1] - 1 - (self.frequencies[:, ::-1] > 0).argmax(axis=1)
        written = np.arange(self.frequencies.shape[1]) <= lasts[:, None]
        return b"".join((*parts, lasts.astype(np.uint8).tobytes(), _varints(self.frequencies[written])))


def _varints(values: np.ndarray) -> bytes:
    """Return numbers below 2¹⁴, of one byte if below 2⁷, else of two, the lower seven bits first."""
    pairs = np.stack([values & 127 | (values >= 128) * 128, values >> 7], axis=1).astype(np.uint8)
    pairs = pairs.reshape(-1)
    is_there = np.ones(len(pairs), bool)
    is_there[1::2] = values >= 128
    return pairs[is_there].tobytes()


def encode(base: np.ndarray, target: np.ndarray, form: WordForm, hint: Hint, start: int) -> bytes:
    """Return what makes target words of the base's.

    Args:
        base, target: Words, contiguous; elsewhere than `NEVER` says so the target may differ.
        start: The first word's place in the tensor.
    """
    count, alphabet, letter = len(base), form.alphabet, form.letter
    prepared, top = hint.prepare(start, count), top_exponent(base, form)
    high = hint.highest(prepared, base, target)
    contexts = hint.contexts(base, form, Frame(start=start, top=top, high=high), prepared)
    numbers, tokens = room("numbers", count, form.word), room("tokens", count, np.uint8)
    known, of_tokens, of_numbers = address(contexts), address(tokens), address(numbers)
    words = address(base), address(target)
    _kernel("tokens", letter)(
        (), *words, count, form.sign, form.sign * form.is_float, known, NEVER - 1, of_numbers, of_tokens
    )
    rows = hint.num_contexts + 1
    counts = room("counts", 4 * rows * alphabet, np.uint32, zero=True).reshape(4, rows, alphabet)
    _COUNT((), known, of_tokens, count, rows, alphabet, address(counts))
    tables = _tables((counts[0] + counts[1] + counts[2] + counts[3])[:-1], keep_all=not hint.draws)
    sizes, states = np.zeros(2, np.uint32), np.zeros(NUM_STATES, np.uint32)
    number, offsets = count, (tables.table_of.astype(np.uint32)) * np.uint32(alphabet)
    offsets[tables.table_of == NEVER] = NONE
    if hint.draws:
        _kernel("compact", letter)((), known, of_tokens, of_numbers, count, address(offsets), address(sizes))
        number = int(sizes[0])
    bits = room("bits", number * form.word.itemsize // 4 + 2, np.uint32)
    _kernel("append_bits", letter)((), of_tokens, of_numbers, number, address(bits), address(sizes))
    num_bits = int(sizes[1])
    coded, entries, inverses = room("coded", number + 1, np.uint16), tables.entries, tables.inverses
    _ENCODE(
        *((), known, of_tokens, number, address(offsets), address(entries), address(inverses)),
        *(address(coded), number + 1, address(states), address(sizes)),
    )
    num_words = int(sizes[0])
    return b"".join(
        (
            tables.pack(top, high),
            SIZES.pack(num_words, num_bits, *map(int, states)),
            coded[number + 1 - num_words :].tobytes(),
            bits[: -(-num_bits // 32)].tobytes(),
        )
    )


def _tables(counts: np.ndarray, *, keep_all: bool) -> Tables:
    """Return tables for contexts.

    Args:
        counts: How often each token comes in each; uint32 [contexts, alphabet], which are changed.
        keep_all: Whether contexts in which nothing differs have a table too.
    """
    contexts, alphabet = counts.shape
    used = counts.any(axis=1)
    costs, gains = np.zeros((2, contexts))
    following, row_of = np.full((2, contexts), -1, np.int32)
    _SHARE(
        (),
        *(address(counts), contexts, alphabet, address(_LOGARITHMS), MOST_TABLES),
        *(address(costs), address(gains), address(following), address(row_of)),
    )
    rows = np.unique(row_of[used])
    rows = rows[keep_all | counts[rows, 1:].any(axis=1)]
    numbers = np.full(contexts, NEVER, np.uint8)
    numbers[rows] = np.arange(len(rows))
    table_of = np.full(256, NEVER, np.uint8)
    table_of[:contexts] = np.where(used, numbers[row_of], 0 if keep_all else NEVER)
    found = counts[rows].astype(np.int64)
    there = found > 0
    frequencies = there + found * (TOTAL - there.sum(axis=1, keepdims=True)) // np.maximum(
        found.sum(axis=1, keepdims=True), 1
    )
    largest = frequencies.argmax(axis=1)
    frequencies[np.arange(len(rows)), largest] += TOTAL - frequencies.sum(axis=1)
    return Tables(table_of=table_of, frequencies=frequencies.astype(np.uint32))
