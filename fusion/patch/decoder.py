"""The model's words out of a frame's code and the base's words."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np

from ..arithmetic.sums import BLOCK
from ..errors import CheckpointError
from ..native import Kernel, address
from .coder import HEAD, LOWEST, NONE, PROBABILITY_BITS, SIZES
from .contexts import NEVER, Frame, Hint
from .forms import WordForm
from .room import room

MOST_BITS = 29  # that follow a token
NUM_CONTEXTS = 256
SPARE = 8  # places that kernels write beyond a block's
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(bool)
# Of each eight bits where the bytes of those that are set are, one after the other, and which of them each is.
_SQUEEZED = np.where(np.arange(8) < _BITS.sum(1)[:, None], np.argsort(~_BITS, axis=1, kind="stable"), 128)
ORDERS = np.stack([_SQUEEZED, np.where(_BITS, _BITS.cumsum(1) - 1, 128)]).astype(np.uint8)
_READ_TABLES = Kernel("patch_decode", "read_tables", "B u B uu W W")


class DamagedFrameError(CheckpointError):
    """A frame's data are not what an encoder writes."""


@cache
def _kernel(name: str, letter: str, hint: str) -> Kernel:
    return Kernel("patch_decode", name, f"{letter} u uuu {hint} W H W W uu BBB W W {letter}")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Lookup:
    """What a frame begins with.

    Attributes:
        slots: Where the slots of each context's table begin, or `NONE`; then what each slot says.
        is_dense: Whether each context that a hint gives has a table.
        rest: What follows in the data.
    """

    top: int
    high: int
    slots: np.ndarray
    is_dense: bool
    rest: np.ndarray


def _tables(data: np.ndarray, form: WordForm, hint: Hint) -> _Lookup:
    (top, high), (count, runs) = HEAD.unpack_from(data.data), data[HEAD.size : HEAD.size + 2].tolist()
    data = data[HEAD.size + 2 :]
    pairs, data = data[: 2 * (runs + 1)].reshape(-1, 2), data[2 * (runs + 1) :]
    table_of = np.repeat(pairs[:, 0], pairs[:, 1].astype(np.int64) + 1)
    has_table = table_of != NEVER
    if len(table_of) != NUM_CONTEXTS or ((table_of >= count) & has_table).any() or has_table[NEVER]:
        raise DamagedFrameError("its contexts have no tables")
    lasts, data = data[:count], data[count:]
    if len(lasts) < count:
        raise DamagedFrameError("it ends too soon")
    slots, sizes = room("slots", NUM_CONTEXTS + (count << PROBABILITY_BITS), np.uint32), np.zeros(1, np.uint32)
    slots[:NUM_CONTEXTS] = np.where(has_table, (table_of.astype(np.uint32) << PROBABILITY_BITS) + NUM_CONTEXTS, NONE)
    own = address(slots[NUM_CONTEXTS:])
    _READ_TABLES((), address(data), len(data), address(lasts), count, form.alphabet, own, address(sizes))
    if count and not sizes[0]:
        raise DamagedFrameError("its tables are none")
    is_dense = bool(has_table[: hint.num_contexts].all())
    return _Lookup(top=top, high=high, slots=slots, is_dense=is_dense, rest=data[int(sizes[0]) :])


def decode(data: np.ndarray, base: np.ndarray, form: WordForm, hint: Hint, start: int, out: np.ndarray) -> None:
    """Put the target words into `out`.

    Args:
        data: Bytes.

    Raises:
        DamagedFrameError: The data are not what `encode` writes.
    """
    try:
        tables = _tables(data, form, hint)
        num_words, num_bits, *states = SIZES.unpack_from(tables.rest.data)
    except (struct.error, IndexError, ValueError) as error:
        raise DamagedFrameError("it ends too soon") from error
    count, rest, num_bit_words = len(base), tables.rest[SIZES.size :], -(-num_bits // 32)
    if len(rest) != 2 * num_words + 4 * num_bit_words:
        raise DamagedFrameError(f"it has {len(rest)} bytes of code and says {2 * num_words + 4 * num_bit_words}")
    if num_words > count or num_bits > count * MOST_BITS:
        raise DamagedFrameError("it has more code than elements")
    # Whatever the code says, an element reads at most one word and 29 bits: there is room for them.
    words, bits = room("words", count + 1, np.uint16), room("bits", count + 2, np.uint32)
    words[:num_words].view(np.uint8)[:] = rest[: 2 * num_words]
    bits[:num_bit_words].view(np.uint8)[:] = rest[2 * num_words :]
    state, sizes = np.array(states, np.uint32), np.zeros(3, np.uint32)
    frame = Frame(start=start, top=tables.top, high=tables.high, is_dense=tables.is_dense)
    name, signature, hinted = hint.decoder(frame, count)
    contexts, coded = (room(name, BLOCK + SPARE, np.uint8) for name in ("contexts", "contexts of coded"))
    places = room("places", BLOCK + SPARE, np.uint32)
    _kernel(name, form.letter, signature)(
        *((), address(base), count, form.shift, form.mask, tables.top, *hinted),
        *(address(tables.slots), address(words), address(state), address(bits), form.sign, form.sign * form.is_float),
        *map(address, (ORDERS, contexts, coded, places, sizes, out)),
    )
    if sizes[0] != num_words or sizes[1] != num_bits or (state != LOWEST).any():
        raise DamagedFrameError("its code ends in the wrong place")
