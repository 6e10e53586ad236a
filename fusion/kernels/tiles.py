"""What kernels are given of a tile, beside its stored elements."""

from __future__ import annotations

import threading
from typing import final

import numpy as np

from ..arithmetic.per_element import PerElement, Repeated
from ..arithmetic.sums import BLOCK
from ..arithmetic.tile import RawTile
from ..native import address

LANES = 512  # 256 of a sum, 256 of a sum of squares

_ONES = np.ones(BLOCK, np.float32)
WHOLE = 1 << 40  # more elements than a tensor has
_ROOT_OF_ONES = address(_ONES), WHOLE, BLOCK


def num_blocks(tile: RawTile) -> int:
    """Return how many blocks a tile has, the last one perhaps in part."""
    return -(-len(tile.base) // BLOCK)


def root_of(tile: RawTile) -> tuple[int, int, int]:
    """Return `sqrt(H)` as (address of values, repeat, inner), signature `F u u`; ones for `H = I`."""
    return root_at(tile.root, tile.start, len(tile.base))


def root_at(root: PerElement | None, start: int, count: int) -> tuple[int, int, int]:
    """Return `sqrt(H)` of a tensor's elements `start … start + count − 1` as `root_of` does."""
    if root is None:
        return _ROOT_OF_ONES
    if isinstance(root, Repeated):
        return address(root.values), root.repeat, root.inner
    values = _scratch.root(count)
    root.fill(start, values)
    return (address(values) - values.itemsize * start) % (1 << 64), 1, WHOLE  # kernels count from the tensor's first


@final
class _Scratch(threading.local):
    """Room for a few blocks, each thread its own."""

    def __init__(self) -> None:
        self._blocks = np.empty((8, BLOCK), np.float32)
        self._lanes = np.empty(LANES, np.float64)
        self._rows = np.empty(0, np.float32)
        self._root = np.empty(0, np.float32)
        self.blocks = [address(block) for block in self._blocks]
        self.lanes = address(self._lanes)

    def rows(self, count: int) -> int:
        if self._rows.size < count:
            self._rows = np.empty(count, np.float32)
        return address(self._rows)

    def root(self, count: int) -> np.ndarray:
        if self._root.size < count:
            self._root = np.empty(count, np.float32)
        return self._root[:count]


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
