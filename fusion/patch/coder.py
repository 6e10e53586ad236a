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

from ..native import Kernel, address
from .contexts import NEVER, Frame, Hint, top_exponent
from .forms import WordForm
from .room import room

PROBABILITY_BITS = 12
MOST_TABLES = 48
NUM_STATES = 8
NONE = 0xFFFFFFFF  # where the entries of a context begin that has no table
SPARE = 32  # bytes that kernels read beyond a frame's
LOWEST = 1 << 16  # a coder's state at the end of decoding
HEAD = struct.Struct("<HH")  # top, high
SIZES = struct.Struct("<II8I")  # words, bits, states

_SHARE = Kernel("patch", "share_tables", "W uu D u DD I I")
_MAKE_TABLES = Kernel("patch", "make_tables", "W W uu W Q B W")
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
class _Tables:
    """Frequencies of tokens.

    Attributes:
        offsets: Where the entries of each context begin, or `NONE`; uint32 [256].
        entries: Start and, 16 bits higher, frequency of each token, out of 4,096; uint32 [tables, alphabet].
        inverses: 2⁴⁴ over each frequency, rounded up; uint64.
        written: They as they are in the frame, what is before them but for `top` and `high` included.
    """

    offsets: np.ndarray
    entries: np.ndarray
    inverses: np.ndarray
    written: bytes


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
    numbers, tokens = room("numbers", count, form.word), room("tokens", count + SPARE, np.uint8)
    known, of_tokens, of_numbers = address(contexts), address(tokens), address(numbers)
    words = address(base), address(target)
    _kernel("tokens", letter)(
        (), *words, count, form.sign, form.sign * form.is_float, known, NEVER - 1, of_numbers, of_tokens
    )
    rows = hint.num_contexts + 1
    counts = room("counts", 4 * rows * alphabet, np.uint32, zero=True).reshape(4, rows, alphabet)
    _COUNT((), known, of_tokens, count, rows, alphabet, address(counts))
    tables = _tables((counts[0] + counts[1] + counts[2] + counts[3])[:-1], keep_all=not hint.draws)
    sizes, states, number = np.zeros(2, np.uint32), np.zeros(NUM_STATES, np.uint32), count
    if hint.draws:
        _kernel("compact", letter)((), known, of_tokens, of_numbers, count, address(tables.offsets), address(sizes))
        number = int(sizes[0])
    bits = room("bits", number * form.word.itemsize // 4 + 2, np.uint32)
    _kernel("append_bits", letter)((), of_tokens, of_numbers, number, address(bits), address(sizes))
    num_bits = int(sizes[1])
    coded = room("coded", number + 1, np.uint16)
    _ENCODE(
        *((), known, of_tokens, number, address(tables.offsets), address(tables.entries), address(tables.inverses)),
        *(address(coded), number + 1, address(states), address(sizes)),
    )
    num_words = int(sizes[0])
    return b"".join(
        (
            HEAD.pack(top, high),
            tables.written,
            SIZES.pack(num_words, num_bits, *map(int, states)),
            coded[number + 1 - num_words :].data,
            bits[: -(-num_bits // 32)].data,
        )
    )


def _tables(counts: np.ndarray, *, keep_all: bool) -> _Tables:
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
    rows = np.unique(row_of[used]).astype(np.uint32)
    rows = rows[keep_all | counts[rows, 1:].any(axis=1)]
    numbers = np.full(contexts, NEVER, np.uint8)
    numbers[rows] = np.arange(len(rows))
    table_of = np.full(256, NEVER, np.uint8)
    table_of[:contexts] = np.where(used, numbers[row_of], 0 if keep_all else NEVER)
    offsets = np.where(table_of == NEVER, NONE, table_of.astype(np.uint32) * np.uint32(alphabet)).astype(np.uint32)
    ends = [*(np.flatnonzero(np.diff(table_of)) + 1).tolist(), 256]
    runs = [b for start, stop in zip([0, *ends], ends, strict=False) for b in (table_of[start], stop - start - 1)]
    entries = room("entries", len(rows) * alphabet, np.uint32)
    inverses = room("inverses", len(rows) * alphabet, np.uint64)
    data, sizes = room("tables", len(rows) * (1 + 2 * alphabet), np.uint8), np.zeros(1, np.uint32)
    _MAKE_TABLES(
        *((), address(counts), address(rows), len(rows), alphabet),
        *(address(entries), address(inverses), address(data), address(sizes)),
    )
    written = bytes([len(rows), len(ends) - 1, *runs]) + data[: int(sizes[0])].tobytes()
    return _Tables(offsets=offsets, entries=entries, inverses=inverses, written=written)
