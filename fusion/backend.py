"""How one tile is computed: by the definition of the method, in NumPy or on an accelerator, or by a CPU kernel."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np

from .methods.method import Map, Pass, measure
from .tile import RawTile


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
    """The definitions on NumPy arrays. Slow on large tensors, at once on small ones."""

    def __init__(self, *, threads: int = 1, tile_elements: int = 1 << 16) -> None:
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

    def __init__(self, *, threads: int, tile_elements: int = 1 << 20) -> None:
        from .kernels import kernel_for

        self.threads = threads
        self.tile_elements = tile_elements
        self._kernel_for = kernel_for
        self._definitions = NumpyBackend()

    def run_pass(self, tile: RawTile, wanted: Pass) -> np.ndarray:
        """Return the pass's rows for a tile."""
        kernel = self._kernel_for(wanted.function, tile)
        if kernel is None:
            return self._definitions.run_pass(tile, wanted)
        return kernel(tile, *wanted.arguments)

    def run_map(self, tile: RawTile, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Fuse a tile."""
        kernel = self._kernel_for(wanted.function, tile, out)
        if kernel is None:
            return self._definitions.run_map(tile, wanted, out)
        return kernel(tile, out, *wanted.arguments)


@final
class TorchBackend(Backend):
    """The definitions on an accelerator, a tile at a time."""

    def __init__(self, device: str, *, tile_elements: int = 1 << 24) -> None:
        import torch

        self.threads = 1
        self.tile_elements = tile_elements
        self._torch = torch
        self._device = torch.device(device)

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


def pick_backend(device: str = "auto", *, threads: int | None = None, tile_elements: int | None = None) -> Backend:
    """Return the backend of a device: `auto`, `cpu`, or any torch device such as `cuda:1`."""
    if device in ("auto", "cpu"):
        threads = threads or max(1, len(os.sched_getaffinity(0)))
        return KernelBackend(threads=threads, tile_elements=tile_elements or 1 << 20)
    return TorchBackend(device, tile_elements=tile_elements or 1 << 24)
