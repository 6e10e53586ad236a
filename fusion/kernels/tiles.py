"""What kernels are given of a tile, beside its stored elements."""

from __future__ import annotations

import threading
from typing import final

import numpy as np

from ..arithmetic.sums import BLOCK
from ..arithmetic.tile import RawTile
from .native import address

LANES = 512  # 256 of a sum, 256 of a sum of squares

_ONES = np.ones(BLOCK, np.float32)
_ROOT_OF_ONES = address(_ONES), 1 << 40, BLOCK


def num_blocks(tile: RawTile) -> int:
    """Return how many blocks a tile has, the last one perhaps in part."""
    return -(-len(tile.base) // BLOCK)


def root_of(tile: RawTile) -> tuple[int, int, int]:
    """Return `sqrt(H)` as (address of values, repeat, inner), signature `F u u`; ones for `H = I`."""
    if tile.root is None:
        return _ROOT_OF_ONES
    return address(tile.root.values), tile.root.repeat, tile.root.inner


@final
class _Scratch(threading.local):
    """Room for a few blocks, each thread its own."""

    def __init__(self) -> None:
        self._blocks = np.empty((8, BLOCK), np.float32)
        self._lanes = np.empty(LANES, np.float64)
        self._rows = np.empty(0, np.float32)
        self.blocks = [address(block) for block in self._blocks]
        self.lanes = address(self._lanes)

    def rows(self, count: int) -> int:
        if self._rows.size < count:
            self._rows = np.empty(count, np.float32)
        return address(self._rows)


_scratch = _Scratch()


def scratch(count: int) -> list[int]:
    """Return room for `count` blocks of float32, and for the lanes of a sum; signature `F … D`."""
    return [*_scratch.blocks[:count], _scratch.lanes]


def scratch_block() -> int:
    """Return room for a block of float32; signature `F`."""
    return _scratch.blocks[0]


def scratch_words() -> int:
    """Return room for a block of uint32, beside `scratch_block`; signature `W`."""
    return _scratch.blocks[1]


def scratch_rows(num_rows: int, length: int) -> list[int]:
    """Return room for rows of float32, one after the other; signature `F …`."""
    first = _scratch.rows(num_rows * length)
    return [first + 4 * length * k for k in range(num_rows)]
