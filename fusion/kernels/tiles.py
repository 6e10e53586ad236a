"""What kernels are given of a tile."""

from __future__ import annotations

import threading
from typing import final

import numpy as np
from ml_dtypes import bfloat16

from ..sums import BLOCK
from ..tile import RawTile
from .native import Pointer

LANES = 256
# Numba knows neither bfloat16 nor, on the CPU, float16.
TAKEN_FOR = {np.dtype(bfloat16): "uint16", np.dtype("f2"): "int16", np.dtype("f4"): "float32"}

_ONES = np.ones(BLOCK, np.float32)


def seen(array: np.ndarray) -> Pointer:
    """Return stored elements as kernels take them."""
    return Pointer(array.__array_interface__["data"][0], TAKEN_FOR[array.dtype])


def num_blocks(tile: RawTile) -> int:
    """Return how many blocks a tile has, the last one perhaps in part."""
    return -(-len(tile.base) // BLOCK)


def root_of(tile: RawTile) -> tuple[np.ndarray, int, int]:
    """Return `sqrt(H)` as (values, repeat, inner); ones for `H = I`."""
    if tile.root is None:
        return _ONES, 1 << 40, BLOCK
    return tile.root.values, tile.root.repeat, tile.root.inner


@final
class _Scratch(threading.local):
    """Room for a few blocks, each thread its own."""

    def __init__(self) -> None:
        self._blocks = np.empty((8, BLOCK), np.float32)
        self._lanes = np.empty(LANES, np.float64)
        self._rows = np.empty(0, np.float32)
        self.blocks = [Pointer.to(block) for block in self._blocks]
        self.lanes = Pointer.to(self._lanes)

    def rows(self, count: int) -> np.ndarray:
        if self._rows.size < count:
            self._rows = np.empty(count, np.float32)
        return self._rows


_scratch = _Scratch()


def scratch(count: int) -> list[Pointer]:
    """Return room for `count` blocks of float32, and for the lanes of a sum."""
    return [*_scratch.blocks[:count], _scratch.lanes]


def scratch_words() -> Pointer:
    """Return room for a block of uint32."""
    return Pointer(_scratch.blocks[0].address, "uint32")


def scratch_rows(num_rows: int, length: int) -> list[Pointer]:
    """Return room for rows of float32, one after the other."""
    address = Pointer.to(_scratch.rows(num_rows * length)).address
    return [Pointer(address + 4 * length * k, "float32") for k in range(num_rows)]
