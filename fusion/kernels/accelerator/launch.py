"""Launching device kernels: one for a pass or map over a tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...arithmetic.random import Key
from ...arithmetic.sums import BLOCK
from ...arithmetic.tile import RawTile

WARPS = 4  # two lanes a thread
WHOLE = 1 << 40  # more elements than a tensor has


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceTile:
    """A tile as it is stored, on a device; torch tensors, bfloat16 as uint16.

    Attributes:
        root: `sqrt(H)` as (float32 values, repeat, inner), as in `arithmetic.per_element`, and the place in that of
            the tile's first element.
    """

    start: int
    base: torch.Tensor
    tuned: tuple[torch.Tensor, ...]
    keys: tuple[Key, ...]
    root: tuple[torch.Tensor, int, int, int]

    @property
    def count(self) -> int:
        """Elements."""
        return self.base.shape[0]


def device_tile(
    tile: RawTile, models: Sequence[torch.Tensor], root: tuple[torch.Tensor, int, int, int] | None
) -> DeviceTile:
    """Return a tile whose stored elements, those of the base first, and whose `sqrt(H)` are on a device."""
    base, *tuned = [as_words(model) for model in models]
    ones = (base.new_ones(1, dtype=torch.float32), WHOLE, 1, 0) if root is None else root
    return DeviceTile(start=tile.start, base=base, tuned=tuple(tuned), keys=tile.keys, root=ones)


def as_words(stored: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 as uint16, which kernels decode; other tensors as they are."""
    return stored.view(torch.uint16) if stored.dtype == torch.bfloat16 else stored


def launched(kernel: Any, tile: DeviceTile, out: Any | None, num_rows: int, arguments: Sequence[Any]) -> Any:
    """Run a kernel on every block of a tile with one tuned model; return its block sums.

    Args:
        out: Where a map writes the fused elements; None for a pass.

    Returns:
        float64, shape (num_rows, num_blocks), on the tile's device.
    """
    blocks = -(-tile.count // BLOCK)
    rows = tile.base.new_empty((num_rows, blocks), dtype=torch.float64)
    stored = [tile.base, tile.tuned[0], *([] if out is None else [as_words(out)])]
    kernel[(blocks,)](*stored, rows, blocks, tile.count, *arguments, num_warps=WARPS, enable_fp_fusion=False)
    return rows
