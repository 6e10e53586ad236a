"""What batches hold between blocks: counted, and above a budget moved to the host's memory, and above that to disk.

Every tensor that a batch's forward makes is known by weak reference, so what is alive when it parks is exact. A
spilled storage is emptied in place and filled again before the batch goes on: whoever refers to it sees nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...fusion.checkpoint.output.checked import read_checked, write_checked
from ...fusion.checkpoint.output.scratch import Scratch
from ...live.privates import storage_key

SMALLEST_SPILL_BYTES = 1 << 16


@dataclass(frozen=True)
class _Spill:
    """A storage that is empty while its bytes are in the host's memory, or else in a file."""

    storage: torch.UntypedStorage
    held: Tensor | None = None
    file: Path | None = None
    digest: str = ""


class Activations:
    """Activations of all batches.

    Attributes:
        budget_bytes: Above this, batches that are parked are spilled; None is no limit.
        host_bytes: What of that stays in the host's memory, where batches run on an accelerator; the rest goes to disk.
        bytes_held: In memory, of parked batches.
        peak_bytes: The most that was held.
        bytes_spilled: Written to disk so far.
    """

    def __init__(self, budget_bytes: int | None = None, folder: Path | None = None, *, host_bytes: int = 0) -> None:
        self.budget_bytes = budget_bytes
        self.host_bytes = host_bytes
        self._in_host = 0
        self.bytes_held = 0
        self.peak_bytes = 0
        self.bytes_spilled = 0
        self._folder = folder
        self._scratch: Scratch | None = None
        self._made: dict[int, list[weakref.ref[Tensor]]] = {}
        self._held: dict[int, int] = {}
        self._spilled: dict[int, dict[int, _Spill]] = {}
        self._current: int | None = None
        self._files = 0
        self.is_weight: Callable[[int], bool] = lambda _: False  # such storages are not a batch's to spill

    def __enter__(self) -> Activations:
        return self

    def __exit__(self, *_: object) -> None:
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def made(self, tensor: Tensor) -> None:
        """Note a tensor that the running batch has made."""
        if self._current is not None:
            self._made[self._current].append(weakref.ref(tensor))

    def resume(self, run: int) -> None:
        """Bring a batch's tensors back; it runs from now on."""
        self._current = run
        self._made.setdefault(run, [])
        self.bytes_held -= self._held.pop(run, 0)
        self.restore(list(self._spilled.get(run, ())))

    def restore(self, keys: Iterable[int]) -> None:
        """Bring those of some storages back that are on disk, for their batch or for another that shares them."""
        spilled = [content for content in self._spilled.values() if content]
        if not spilled:  # asked at every operation
            return
        for key in keys:
            for content in spilled:
                if key in content:
                    spill = content.pop(key)
                    stored = self._stored(spill)
                    spill.storage.resize_(len(stored))
                    _bytes_of(spill.storage).copy_(stored)
                    self._let_go(spill)

    @staticmethod
    def _stored(spill: _Spill) -> Tensor:
        if spill.held is not None:
            return spill.held
        assert spill.file is not None
        return torch.from_numpy(read_checked(spill.file, spill.digest))

    def _let_go(self, spill: _Spill) -> None:
        if spill.held is not None:
            self._in_host -= len(spill.held)
        elif spill.file is not None:
            spill.file.unlink(missing_ok=True)

    def park(self, run: int) -> None:
        """Count what a batch holds while it waits, and spill it if that is over the budget."""
        self._current = None
        alive: dict[int, torch.UntypedStorage] = {}
        refs = []
        for ref in self._made[run]:
            tensor = ref()
            if tensor is not None:
                refs.append(ref)
                storage = tensor.untyped_storage()
                key = storage_key(storage)
                if not self.is_weight(key):
                    alive[key] = storage
        self._made[run] = refs
        held = sum(storage.nbytes() for storage in alive.values())
        self.peak_bytes = max(self.peak_bytes, self.bytes_held + held)
        if self.budget_bytes is not None and self.bytes_held + held > self.budget_bytes:
            held -= self._spill(run, list(alive.values()))
        self._held[run] = held
        self.bytes_held += held

    def drop(self, run: int) -> None:
        """Forget a batch that has ended."""
        self._current = None
        self.bytes_held -= self._held.pop(run, 0)
        self._made.pop(run, None)
        for spill in self._spilled.pop(run, {}).values():
            self._let_go(spill)

    def _spill(self, run: int, storages: list[torch.UntypedStorage]) -> int:
        gone = 0
        for storage in storages:
            size = storage.nbytes()
            if size < SMALLEST_SPILL_BYTES or not storage.resizable():
                continue
            # A copy: a storage that NumPy has seen cannot be resized any more.
            copy = _bytes_of(storage).to("cpu", copy=True)
            if self._in_host + size <= self.host_bytes:
                spill = _Spill(storage, held=copy)
                self._in_host += size
            else:
                spill = self._written(storage, copy)
                self.bytes_spilled += size
            storage.resize_(0)
            self._spilled.setdefault(run, {})[storage_key(storage)] = spill
            gone += size
        return gone

    def _written(self, storage: torch.UntypedStorage, content: Tensor) -> _Spill:
        if self._scratch is None:
            self._scratch = Scratch(self._folder)
        file = self._scratch.folder / str(self._files)
        self._files += 1
        return _Spill(storage, file=file, digest=write_checked(file, content.numpy()))


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)  # pyright: ignore[reportArgumentType]
