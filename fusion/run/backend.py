"""How one tile is computed: by the definition of the method, in NumPy or on an accelerator, or by a CPU kernel."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

import numpy as np

from ..arithmetic.passes import Map, Pass, measure
from ..arithmetic.per_element import Computed, PerElement, Repeated
from ..arithmetic.sums import BLOCK, beside, wide
from ..arithmetic.tile import RawTile, Tile
from ..device import device_of, float64_device, torch_device

if TYPE_CHECKING:
    from ..kernels.accelerator.launch import DeviceTile
    from ..kernels.stand_in import StandIns

DEFINITION_TILE = 1 << 14  # elements whose float64 sums stay in the second-level cache
KERNEL_TILE = 1 << 21
COMPUTED_TILE = 1 << 17  # of elements whose `sqrt(H)` is computed as they come: it stays in the second-level cache
TORCH_TILE = 1 << 22
TORCH_BYTES = 160  # an element's, at the height of a definition: its float32 forms, hash words and float64 sums
SPARE_BUFFERS = 4  # tiles that may wait to be written, beside one a thread
TRITON_DEVICES = ("cuda", "xpu")
MIN_KERNEL_ELEMENTS = 1 << 23  # fewer are fused by NumPy while Numba would still be loading


class Backend(ABC):
    """Runs passes and maps on tiles. `threads` workers may call it at once, with tiles of `tile_elements`.

    Attributes:
        device: Where they are computed, as torch names it.
    """

    threads: int
    tile_elements: int
    device: str = "cpu"

    @property
    def piece_elements(self) -> int:
        """Elements of a tile that are in arithmetic at once, on each thread."""
        return min(self.tile_elements, DEFINITION_TILE)

    def place(self, array: np.ndarray) -> Any:
        """Return an array where definitions compute."""
        return array

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
            return np.asarray(wanted.function(tile if wanted.as_stored else tile.decode(), *wanted.arguments))

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
        from ..kernels import KERNELS

        self.threads = threads
        self.tile_elements = tile_elements
        self._kernel_for = KERNELS.find
        self._definitions = NumpyBackend()

    def run_pass(self, tile: RawTile, wanted: Pass) -> np.ndarray:
        """Return the pass's rows for a tile."""
        kernel = self._kernel_for(wanted.function, wanted.arguments, tile)
        if kernel is None:
            return wanted.join([self._definitions.run_pass(piece, wanted) for piece in _pieces(tile, DEFINITION_TILE)])
        if isinstance(tile.root, Computed):
            return wanted.join([kernel(piece, *wanted.arguments) for piece in _pieces(tile, COMPUTED_TILE)])
        return kernel(tile, *wanted.arguments)

    def run_map(self, tile: RawTile, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Fuse a tile."""
        kernel = self._kernel_for(wanted.function, wanted.arguments, tile, out)
        if kernel is not None and not isinstance(tile.root, Computed):
            return kernel(tile, out, *wanted.arguments)
        rows = []
        for piece in _pieces(tile, DEFINITION_TILE if kernel is None else COMPUTED_TILE):
            own = out[piece.start - tile.start :][: len(piece.base)]
            if kernel is None:
                rows.append(self._definitions.run_map(piece, wanted, own))
            else:
                rows.append(kernel(piece, own, *wanted.arguments))
        return np.concatenate(rows, axis=1)


def _pieces(tile: RawTile, most: int) -> Iterator[RawTile]:
    """Cut a tile into pieces of whole grains, of about as many elements as are given."""
    size, count = max(1, most // tile.grain) * tile.grain, len(tile.base)
    for first in range(0, count, size):
        part = slice(first, first + size)
        tuned = tuple(array[part] for array in tile.tuned)
        yield replace(tile, start=tile.start + first, base=tile.base[part], tuned=tuned)


class _Staging(threading.local):
    """One thread's way to an accelerator: a stream of its own, and page-locked memory that copies can overlap from."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch = torch
        self._pinned = device.type == "cuda"
        self._slots: dict[str, Any] = {}
        self.stream = torch.cuda.Stream(device) if self._pinned else None

    def slot(self, name: str, nbytes: int) -> Any:
        """Return a reused host buffer of bytes."""
        found = self._slots.get(name)
        if found is None or found.numel() < nbytes:
            found = self._torch.empty(nbytes, dtype=self._torch.uint8, pin_memory=self._pinned)
            self._slots[name] = found
        return found[:nbytes]


@final
class TorchBackend(Backend):
    """An accelerator, a tile at a time: Triton's kernels where there are such, else the definitions.

    Three threads, each with a stream of its own: while one tile is computed, the next is on its way to the device and
    the one before on its way back. The same code runs on torch's CPU device, with streams and page-locking left out.
    """

    def __init__(self, device: str, *, tile_elements: int = TORCH_TILE) -> None:
        import torch

        self._torch = torch
        self._device = torch_device(device)
        self.device = device
        self.threads = 3 if self._device.type == "cuda" else 1
        self.tile_elements = tile_elements
        self._staging = _Staging(torch, self._device)
        self._kernels = _device_kernels(self._device.type)
        self._roots: WeakKeyDictionary[Repeated, Any] = WeakKeyDictionary()  # a tensor's tiles share one
        self._sending = threading.Lock()

    @property
    def piece_elements(self) -> int:
        """Elements that are in arithmetic at once: a device takes the tile as it is."""
        return self.tile_elements

    def place(self, array: np.ndarray) -> Any:
        """Return an array on the device, or where float64 is computed for it: methods of matrices do."""
        return self._torch.from_numpy(array).to(float64_device(self._device))

    def _on_stream(self) -> AbstractContextManager[Any]:
        stream = self._staging.stream
        return nullcontext() if stream is None else self._torch.cuda.stream(stream)

    def _sent(self, name: str, array: np.ndarray, device: Any) -> Any:
        """Return an array on a device; the copy may still be under way on this thread's stream."""
        slot = self._staging.slot(name, array.nbytes)
        slot.numpy()[:] = array.reshape(-1).view(np.uint8)
        return slot.view(getattr(self._torch, array.dtype.name)).to(device, non_blocking=True)

    def _received(self, name: str, tensor: Any) -> np.ndarray:
        """Return the bytes of a tensor, once everything before it on the stream is done."""
        flat = tensor.contiguous().view(-1).view(self._torch.uint8)
        slot = self._staging.slot(name, flat.numel())
        slot.copy_(flat, non_blocking=True)
        if self._staging.stream is not None:
            self._staging.stream.synchronize()
        return slot.numpy()

    def _root(self, tile: RawTile, root: PerElement, device: Any) -> tuple[Any, int, int, int]:
        """Return `sqrt(H)` of a tile on a device: values, repeat, inner, and the first element's place in them.

        Values that repeat are sent once a tensor, and are there when this returns; others, a tile at a time.
        """
        if isinstance(root, Computed):
            return self._sent("root", root.expand(tile.start, len(tile.base)), device), 1, len(tile.base), 0
        with self._sending:
            found = self._roots.get(root)
            if found is None or found.device != device:
                found = self._roots[root] = self._torch.from_numpy(root.values).to(device)
        return found, root.repeat, root.inner, tile.start

    def _decode(self, tile: RawTile) -> Tile:
        torch = self._torch
        is_wide = any(array.dtype == np.float64 for array in (tile.base, *tile.tuned))
        dtype = torch.float64 if is_wide else torch.float32
        device = device_of(self._device, np.dtype(np.float64 if is_wide else np.float32))
        root = None
        if tile.root is not None:
            values, repeat, inner, first = self._root(tile, tile.root, device)
            index = torch.arange(first, first + len(tile.base), device=device)
            root = values[index // (repeat * inner) * inner + index % inner]
        return Tile(
            start=tile.start,
            base=self._sent("base", tile.base, device).to(dtype),
            tuned=tuple(self._sent(f"tuned {k}", array, device).to(dtype) for k, array in enumerate(tile.tuned)),
            keys=tile.keys,
            root=root,
            grain=tile.grain,
            prepared=tile.prepared,
        )

    def _stored(self, tile: RawTile) -> DeviceTile:
        """Return a tile as kernels take it."""
        from ..kernels.accelerator.launch import device_tile

        arrays = [self._sent(f"model {k}", array, self._device) for k, array in enumerate((tile.base, *tile.tuned))]
        return device_tile(tile, arrays, None if tile.root is None else self._root(tile, tile.root, self._device))

    def _kernel(self, wanted: Pass | Map, tile: RawTile, out: np.ndarray | None = None) -> Any:
        if self._kernels is None:
            return None
        return self._kernels.find(wanted.function, wanted.arguments, tile, out)

    def run_pass(self, tile: RawTile, wanted: Pass) -> np.ndarray:
        """Return the pass's rows for a tile."""
        kernel = self._kernel(wanted, tile)
        with self._on_stream():
            if kernel is not None:
                rows = kernel(self._stored(tile), *wanted.arguments)
            else:
                rows = wanted.function(self._decode(tile), *wanted.arguments)
            kind = np.dtype(str(rows.dtype).removeprefix("torch."))
            return self._received("rows", rows).view(kind).reshape(tuple(rows.shape)).copy()

    def run_map(self, tile: RawTile, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Fuse a tile."""
        kernel, dtype = self._kernel(wanted, tile, out), getattr(self._torch, out.dtype.name)
        with self._on_stream():
            if kernel is not None:
                stored = self._torch.empty(len(out), dtype=dtype, device=self._device)
                rows = kernel(self._stored(tile), stored, *wanted.arguments)
            else:
                decoded = self._decode(tile)
                fused = wanted.function(decoded, *wanted.arguments)
                values = fused.values if out.dtype != np.float64 else wide(fused.values)
                stored = values.to(dtype)
                rows = measure(decoded, beside(stored, decoded.base), fused)
            out.view(np.uint8)[:] = self._received("out", stored)
            return self._received("rows", rows).view(np.float64).reshape(tuple(rows.shape)).copy()


def _device_kernels(kind: str) -> StandIns | None:
    """Return the kernels for a type of device; None where Triton is missing or compiles for no such device.

    Triton's interpreter, which `TRITON_INTERPRET=1` asks for, runs them on the CPU.
    """
    takes = kind in TRITON_DEVICES or (kind == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    if not takes or find_spec("triton") is None:
        return None
    from ..kernels.accelerator import KERNELS

    return KERNELS


def all_cores() -> int:
    """Return the number of processors that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pick_backend(
    device: str = "auto",
    *,
    threads: int | None = None,
    tile_elements: int | None = None,
    num_elements: int | None = None,
    memory: int | None = None,
) -> Backend:
    """Return the backend of a device: `auto`, `cpu`, or any torch device such as `cuda:1`.

    Args:
        num_elements: How many will be fused, if that is known: loading the kernels takes longer than fusing a few.
        memory: Bytes that the tiles under way may take; a tensor of any size is cut into as many as it needs.
    """

    def tile(default: int, bytes_each: int, fixed: int = 0) -> int:
        if tile_elements is not None:
            return tile_elements
        if memory is None:
            return default
        affordable = (memory - min(fixed, memory // 2)) // bytes_each // BLOCK * BLOCK
        return max(BLOCK, min(default, affordable))

    if device not in ("auto", "cpu"):
        return TorchBackend(device, tile_elements=tile(TORCH_TILE, 3 * TORCH_BYTES))
    threads = threads or all_cores()
    if num_elements is not None and num_elements < MIN_KERNEL_ELEMENTS:
        return NumpyBackend(threads=threads, tile_elements=tile(DEFINITION_TILE, threads * TORCH_BYTES))
    arithmetic = threads * DEFINITION_TILE * TORCH_BYTES
    return KernelBackend(threads=threads, tile_elements=tile(KERNEL_TILE, (threads + SPARE_BUFFERS) * 8, arithmetic))
