"""A frame: the differences of up to 2²⁰ words, coded by rANS with a table for each of a few contexts.

What is written is told in `docs/patch-format.md`. The arithmetic is that of J. Duda, Asymmetric numeral systems
(arXiv:1311.2540), with 32-bit states and 16-bit words, eight states in turn, as in F. Giesen's `ryg_rans`.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np

from ..errors import CheckpointError
from ..kernels.native import Kernel, address
from .contexts import NEVER, Frame, Hint, top_exponent
from .forms import WordForm

PROBABILITY_BITS = 12
TOTAL = 1 << PROBABILITY_BITS
MOST_TABLES = 48
NUM_STATES = 8
MOST_BITS = 29  # that follow a token
LOWEST = 1 << 16  # a coder's state at the end of decoding
HEAD = struct.Struct("<HHBB")  # top, high, number of tables, number of runs of contexts
SIZES = struct.Struct("<II8I")  # words, bits, states

_SHARE = Kernel("patch", "share_tables", "W uu D u DD I I")
_TABLES = Kernel("patch", "table_numbers", "B u B B")
_CODED = Kernel("patch", "coded", "B u B W B W")
_ENCODE = Kernel("patch", "encode", "H u WQ H u W W")
_DECODE = Kernel("patch", "decode", "B u B W u H W B W")
_COUNT = Kernel("patch", "count_tokens", "BB u uu W")
# Of numbers from 1 to 2 at the middle of each of 2,048 steps.
_LOGARITHMS = np.log2(1 + (np.arange(2048) + 0.5) / 2048)


class DamagedFrameError(CheckpointError):
    """CodedFrame data are not what an encoder writes."""


@cache
def _kernel(name: str, letter: str) -> Kernel:
    signatures = {
        "tokens": f"{letter}{letter} u uu B u {letter} B",
        "symbols": f"BB{letter} u u H W W",
        "symbols_at": f"WBB{letter} u u H W W",
        "numbers": f"B u W {letter} W",
        "moved": f"{letter}{letter} u uu {letter}",
        "moved_at": f"{letter}W{letter} u uu {letter}",
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

    @property
    def slots(self) -> np.ndarray:
        """The token of each of 4,096 slots a table."""
        tables, alphabet = self.frequencies.shape
        tokens = np.tile(np.arange(alphabet, dtype=np.uint8), tables)
        return np.repeat(tokens, self.frequencies.reshape(-1))

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

    @classmethod
    def unpack(cls, data: memoryview, form: WordForm) -> tuple[Tables, int, int, memoryview]:
        """Return tables, `top`, `high` and what follows in the data."""
        top, high, count, runs = HEAD.unpack_from(data)
        data = data[HEAD.size :]
        pairs = np.frombuffer(data[: 2 * (runs + 1)], np.uint8).reshape(-1, 2)
        table_of = np.repeat(pairs[:, 0], pairs[:, 1].astype(np.int64) + 1)
        if len(table_of) != 256 or ((table_of >= count) & (table_of != NEVER)).any():
            raise DamagedFrameError("its contexts have no tables")
        data = data[2 * (runs + 1) :]
        lasts, data = np.frombuffer(data[:count], np.uint8), data[count:]
        if len(lasts) < count or (lasts >= form.alphabet).any():
            raise DamagedFrameError("a table has more tokens than there are")
        frequencies = np.zeros((count, form.alphabet), np.uint32)
        written = np.arange(form.alphabet) <= lasts[:, None]
        frequencies[written], data = _from_varints(data, int(written.sum()))
        if (frequencies.sum(axis=1) != TOTAL).any():
            raise DamagedFrameError("the frequencies of a table have the wrong sum")
        return cls(table_of=table_of, frequencies=frequencies), top, high, data


def _varints(values: np.ndarray) -> bytes:
    """Return numbers below 2¹⁴, of one byte if below 2⁷, else of two, the lower seven bits first."""
    pairs = np.stack([values & 127 | (values >= 128) * 128, values >> 7], axis=1).astype(np.uint8)
    pairs = pairs.reshape(-1)
    is_there = np.ones(len(pairs), bool)
    is_there[1::2] = values >= 128
    return pairs[is_there].tobytes()


def _from_varints(data: memoryview, count: int) -> tuple[np.ndarray, memoryview]:
    """Return so many numbers, and what follows."""
    found = np.frombuffer(data[: 2 * count], np.uint8).astype(np.uint32)
    follows = np.zeros(len(found) + 1, bool)
    follows[1:] = found >= 128  # the second byte of a number is below
    firsts = np.flatnonzero(~follows[: len(found)])[:count]
    if len(firsts) < count:
        raise DamagedFrameError("it ends too soon")
    seconds = np.append(found, 0)[firsts + 1]
    values = np.where(follows[firsts + 1], (found[firsts] & 127) | (seconds << 7), found[firsts])
    end = int(firsts[-1]) + 1 + int(follows[firsts[-1] + 1]) if count else 0
    return values, data[end:]


@final
class _Room(threading.local):
    """Memory for the arrays of one frame, each thread its own: fresh pages would take a third of the time."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def __call__(self, name: str, count: int, kind: type | np.dtype, *, zero: bool = False) -> np.ndarray:
        """Return room for elements under a name, with zeros in it if asked for."""
        dtype = np.dtype(kind)
        found = self._arrays.get(name)
        if found is None or found.nbytes < count * dtype.itemsize:
            found = self._arrays[name] = np.empty(count * dtype.itemsize, np.uint8)
        room = found[: count * dtype.itemsize].view(dtype)
        if zero:
            room[:] = 0
        return room


_room = _Room()


def encode(base: np.ndarray, target: np.ndarray, form: WordForm, hint: Hint, start: int) -> bytes:
    """Return what makes target words of the base's.

    Args:
        base, target: Words, contiguous; elsewhere than `NEVER` says so the target may differ.
        start: The first word's place in the tensor.
    """
    count, alphabet, letter = len(base), form.alphabet, form.letter
    prepared, top = hint.prepare(start, count), top_exponent(base, form)
    high = hint.highest(prepared, base, target)
    contexts = hint.contexts(base, form, Frame(start=start, top=top, high=high, prepared=prepared))
    numbers, tokens = _room("numbers", count, form.word), _room("tokens", count, np.uint8)
    known, of_tokens, of_numbers = address(contexts), address(tokens), address(numbers)
    words = address(base), address(target)
    _kernel("tokens", letter)(
        (), *words, count, form.sign, form.sign * form.is_float, known, NEVER - 1, of_numbers, of_tokens
    )
    rows = hint.num_contexts + 1
    counts = _room("counts", 4 * rows * alphabet, np.uint32, zero=True).reshape(4, rows, alphabet)
    _COUNT((), known, of_tokens, count, rows, alphabet, address(counts))
    tables = _tables((counts[0] + counts[1] + counts[2] + counts[3])[:-1], keep_all=not hint.draws)
    sizes, states = np.zeros(2, np.uint32), np.zeros(NUM_STATES, np.uint32)
    positions, table_numbers, number = _coded(contexts, tables, hint)
    symbols = _room("symbols", number, np.uint16)
    bits = _room("bits", number * form.word.itemsize // 4 + 2, np.uint32)
    found = address(table_numbers), of_tokens, of_numbers, number, alphabet
    into = address(symbols), address(bits), address(sizes)
    if positions is None:
        _kernel("symbols", letter)((), *found, *into)
    else:
        _kernel("symbols_at", letter)((), address(positions), *found, *into)
    num_bits = int(sizes[1])
    coded, entries, inverses = _room("coded", number + 1, np.uint16), tables.entries, tables.inverses
    _ENCODE(
        *((), address(symbols), number, address(entries), address(inverses)),
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


def decode(data: memoryview, base: np.ndarray, form: WordForm, hint: Hint, start: int) -> np.ndarray:
    """Return the target words.

    Raises:
        DamagedFrameError: The data are not what `encode` writes.
    """
    try:
        tables, top, high, data = Tables.unpack(data, form)
        num_words, num_bits, *states = SIZES.unpack_from(data)
    except (struct.error, IndexError, ValueError) as error:
        raise DamagedFrameError("it ends too soon") from error
    count, alphabet = len(base), form.alphabet
    data, num_bit_words = data[SIZES.size :], -(-num_bits // 32)
    if len(data) != 2 * num_words + 4 * num_bit_words:
        raise DamagedFrameError(f"it has {len(data)} bytes of code and says {2 * num_words + 4 * num_bit_words}")
    words, bits = np.zeros(num_words + 1, np.uint16), np.zeros(num_bit_words + 2, np.uint32)
    words[:num_words] = np.frombuffer(data[: 2 * num_words], "<u2")
    bits[:num_bit_words] = np.frombuffer(data[2 * num_words :], "<u4")
    frame = Frame(start=start, top=top, high=high, prepared=hint.prepare(start, count))
    contexts = hint.contexts(base, form, frame)
    positions, table_numbers, number = _coded(contexts, tables, hint)
    if num_words > number or num_bits > number * MOST_BITS:
        raise DamagedFrameError("it has more code than elements")
    words = _room("words", number + 1, np.uint16)
    words[:num_words] = np.frombuffer(data[: 2 * num_words], "<u2")
    bits = _room("bits", number + 2, np.uint32)
    bits[:num_bit_words] = np.frombuffer(data[2 * num_words :], "<u4")
    tokens, state, sizes = _room("tokens", number, np.uint8), np.array(states, np.uint32), np.zeros(2, np.uint32)
    slots, entries = tables.slots, tables.entries
    _DECODE(
        *((), address(table_numbers), number, address(slots), address(entries), alphabet),
        *(address(words), address(state), address(tokens), address(sizes)),
    )
    if sizes[0] != num_words or (state != LOWEST).any():
        raise DamagedFrameError("its code does not end where it should")
    numbers = _room("numbers", number, form.word)
    _kernel("numbers", form.letter)((), address(tokens), number, address(bits), address(numbers), address(sizes))
    if sizes[1] != num_bits:
        raise DamagedFrameError("its code does not end where it should")
    kind = form.sign, form.sign * form.is_float
    if positions is None:
        out = np.empty_like(base)
        _kernel("moved", form.letter)((), address(base), address(numbers), count, *kind, address(out))
    else:
        out = base.copy()
        places = address(positions), address(numbers), number
        _kernel("moved_at", form.letter)((), address(base), *places, *kind, address(out))
    return out


def _coded(contexts: np.ndarray, tables: Tables, hint: Hint) -> tuple[np.ndarray | None, np.ndarray, int]:
    """Return where the elements are that are coded, None for all; the table of each; and their number."""
    count, of = len(contexts), address(tables.table_of)
    table_numbers = _room("table_numbers", count + 1, np.uint8)
    if not hint.draws and (tables.table_of[: hint.num_contexts] != NEVER).all():
        _TABLES((), address(contexts), count, of, address(table_numbers))
        return None, table_numbers, count
    positions, sizes = _room("positions", count + 1, np.uint32), np.zeros(1, np.uint32)
    _CODED((), address(contexts), count, of, address(positions), address(table_numbers), address(sizes))
    return positions, table_numbers, int(sizes[0])
