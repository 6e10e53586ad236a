"""How one tile is computed: by the definition of the method, in NumPy or on an accelerator, or by a CPU kernel."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, final

import numpy as np

from .device import torch_device
from .methods.method import Map, Pass, measure
from .tile import RawTile

DEFINITION_TILE = 1 << 14  # elements whose float64 sums stay in the second-level cache
KERNEL_TILE = 1 << 20
MIN_KERNEL_ELEMENTS = 1 << 23  # fewer are fused by NumPy while Numba would still be loading


class Backend(ABC):
    """Runs passes and maps on tiles. `threads` workers may call it at once, with tiles of `tile_elements`."""

    threads: int
    tile_elements: int

    @abstractmethod
    def run_pass(self, tile: RawTile, wanted: Pass) -> np.ndarray:
        """Return what a pass's function makes of a tile."""

    @abstractmethod
    def run_map(self, tile: RawTile, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Write the fused elements into `out`, rounded once to its dtype; return `measure`'s rows."""


@final
class NumpyBackend(Backend):
    """The definitions on NumPy arrays: 50 times slower than kernels, and there at once."""

    def __init__(self, *, threads: int = 1, tile_elements: int = DEFINITION_TILE) -> None:
        self.threads = threads
        self.tile_elements = tile_elements

    def run_pass(self, tile: RawTile, wanted: Pass) -> np.ndarray:
        """Return the pass's rows for a tile."""
        with np.errstate(all="ignore"):
            return np.asarray(wanted.function(tile.decode(), *wanted.arguments))

    def run_map(self, tile: RawTile, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Fuse a tile."""
        with np.errstate(all="ignore"):
            decoded = tile.decode()
            fused = wanted.function(decoded, *wanted.arguments)
            out[:] = fused.values.astype(out.dtype)
            return measure(decoded, out.astype(decoded.base.dtype), fused)


@final
class KernelBackend(Backend):
    """Compiled kernels; what has none runs as `NumpyBackend` does, in pieces that fit the cache."""

    def __init__(self, *, threads: int = 1, tile_elements: int = KERNEL_TILE) -> None:
        from .kernels import kernel_for

        self.threads = threads
        self.tile_elements = tile_elements
        self._kernel_for = kernel_for
        self._definitions = NumpyBackend()

    def run_pass(self, tile: RawTile, wanted: Pass) -> np.ndarray:
        """Return the pass's rows for a tile."""
        kernel = self._kernel_for(wanted.function, wanted.arguments, tile)
        if kernel is None:
            return wanted.join([self._definitions.run_pass(piece, wanted) for piece in _pieces(tile)])
        return kernel(tile, *wanted.arguments)

    def run_map(self, tile: RawTile, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Fuse a tile."""
        kernel = self._kernel_for(wanted.function, wanted.arguments, tile, out)
        if kernel is None:
            rows = []
            for piece in _pieces(tile):
                first = piece.start - tile.start
                rows.append(self._definitions.run_map(piece, wanted, out[first : first + len(piece.base)]))
            return np.concatenate(rows, axis=1)
        return kernel(tile, out, *wanted.arguments)


def _pieces(tile: RawTile) -> Iterator[RawTile]:
    """Cut a tile into pieces of whole grains that the definitions compute in cache."""
    size, count = max(1, DEFINITION_TILE // tile.grain) * tile.grain, len(tile.base)
    for first in range(0, count, size):
        part = slice(first, first + size)
        tuned = tuple(array[part] for array in tile.tuned)
        yield replace(tile, start=tile.start + first, base=tile.base[part], tuned=tuned)


@final
class TorchBackend(Backend):
    """The definitions on an accelerator, a tile at a time."""

    def __init__(self, device: str, *, tile_elements: int = 1 << 24) -> None:
        import torch

        self.threads = 1
        self.tile_elements = tile_elements
        self._torch = torch
        self._device = torch_device(device)

    def _tensor(self, array: np.ndarray) -> Any:
        torch = self._torch
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(self._device)
        return torch.from_numpy(array.copy()).to(self._device)

    def _decode(self, tile: RawTile) -> Any:
        from .tile import Tile

        wide = any(array.dtype == np.float64 for array in (tile.base, *tile.tuned))
        dtype = self._torch.float64 if wide else self._torch.float32
        root = None
        if tile.root is not None:
            values = self._tensor(tile.root.values)
            index = self._torch.arange(tile.start, tile.start + len(tile.base), device=self._device)
            inner = tile.root.inner
            root = values[index // (tile.root.repeat * inner) * inner + index % inner]
        return Tile(
            start=tile.start,
            base=self._tensor(tile.base).to(dtype),
            tuned=tuple(self._tensor(array).to(dtype) for array in tile.tuned),
            keys=tile.keys,
            root=root,
            grain=tile.grain,
            prepared=tile.prepared,
        )

    def run_pass(self, tile: RawTile, wanted: Pass) -> np.ndarray:
        """Return the pass's rows for a tile."""
        return wanted.function(self._decode(tile), *wanted.arguments).cpu().numpy()

    def run_map(self, tile: RawTile, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Fuse a tile."""
        torch = self._torch
        decoded = self._decode(tile)
        fused = wanted.function(decoded, *wanted.arguments)
        stored = fused.values.to(getattr(torch, out.dtype.name))
        out.view(np.uint8)[:] = stored.view(torch.uint8).cpu().numpy()
        return measure(decoded, stored.to(decoded.base.dtype), fused).cpu().numpy()


def pick_backend(
    device: str = "auto",
    *,
    threads: int | None = None,
    tile_elements: int | None = None,
    num_elements: int | None = None,
) -> Backend:
    """Return the backend of a device: `auto`, `cpu`, or any torch device such as `cuda:1`.

    Args:
        num_elements: How many will be fused, if that is known: loading the kernels takes longer than fusing a few.
    """
    if device not in ("auto", "cpu"):
        return TorchBackend(device, tile_elements=tile_elements or 1 << 24)
    threads = threads or max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if num_elements is not None and num_elements < MIN_KERNEL_ELEMENTS:
        return NumpyBackend(threads=threads, tile_elements=tile_elements or DEFINITION_TILE)
    return KernelBackend(threads=threads, tile_elements=tile_elements or KERNEL_TILE)
