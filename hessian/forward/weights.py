"""Weights of one unit at a time: read once from the checkpoint, converted, placed in the model, and let go of.

A parameter that is not loaded is a stand-in: right shape, dtype and device, one element of memory. Parameters keep
their identity throughout, so ties and references to them hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ...fusion.checkpoint import Source
from ...fusion.errors import ModelError
from ...live.names import Recipe
from ...live.skeleton import Skeleton
from ...live.units import Unit
from ..measure.recorder import Recorder, storage_key
from ..measure.statistics import ParameterStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(eq=False)
class _Slot:
    """A parameter or buffer of the model that the checkpoint fills."""

    tensor: Tensor
    names: list[str]
    recipe: Recipe
    statistics: ParameterStatistics | None
    stand_in: Tensor
    users: int = 0  # units that have it and have not been finished
    pinned: bool = False
    loaded: bool = False


def read_tensor(checkpoint: Source, name: str) -> Tensor:
    """Return a copy of a stored tensor on the CPU, in its stored dtype."""
    info = checkpoint.tensors[name]
    tensor = torch.empty(info.shape, dtype=getattr(torch, info.kind.torch))
    if tensor.numel():
        flat = tensor.reshape(-1).view(torch.uint8).numpy()
        flat[:] = checkpoint.read(name).view(np.uint8)
        checkpoint.release(name)
    return tensor


class Weights:
    """The model's weights, all absent at first.

    Attributes:
        bytes_read: Stored bytes read so far.
        reads: How often each tensor of the checkpoint was read.
    """

    def __init__(
        self,
        checkpoint: Source,
        skeleton: Skeleton,
        units: Iterable[Unit],
        recorder: Recorder,
        *,
        device: torch.device,
        statistics_of: Callable[[str, tuple[int, ...]], ParameterStatistics | None],
        keep_stored: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self._stored: dict[str, np.ndarray] | None = {} if keep_stored else None
        self.model = skeleton.model
        self.recorder = recorder
        self.device = device
        self.bytes_read = 0
        self.reads: dict[str, int] = {}
        self._kept: dict[str, Tensor] = {}  # converted, stored dtype, waiting to be used (again)
        self._slots: dict[str, _Slot] = {}
        self._by_key: dict[int, _Slot] = {}
        self._make_slots(skeleton, statistics_of)
        self._statistics = {name: slot.statistics for name, slot in self._slots.items() if slot.statistics is not None}
        for unit in units:
            for slot in self._slots_of(unit.parameters):
                slot.users += 1
        recorder.demand = self._demand

    def _make_slots(
        self, skeleton: Skeleton, statistics_of: Callable[[str, tuple[int, ...]], ParameterStatistics | None]
    ) -> None:
        recipes = {target: recipe for recipe in skeleton.names.recipes for target in recipe.targets}
        owners: dict[int, _Slot] = {}
        named = [*self.model.named_parameters(remove_duplicate=False)]
        buffers = [*self.model.named_buffers(remove_duplicate=False)]
        for name, tensor in [*named, *buffers]:
            if not tensor.is_meta:
                continue
            slot = owners.get(id(tensor))
            if slot is None and name in recipes:
                slot = owners[id(tensor)] = self._new_slot(name, tensor, recipes[name], statistics_of)
            if slot is not None:
                slot.names.append(name)
                self._slots[name] = slot
        for name, tensor in [*named, *buffers]:  # names that a tied twin fills, seen before it
            if tensor.is_meta and name not in self._slots:
                slot = owners.get(id(tensor))
                if slot is None:
                    raise ModelError(f"`{name}` of `{type(self.model).__name__}` is filled by no tensor")
                slot.names.append(name)
                self._slots[name] = slot
        for name, slot in self._slots.items():
            self._set(name, slot.tensor)

    def _new_slot(
        self,
        name: str,
        meta: Tensor,
        recipe: Recipe,
        statistics_of: Callable[[str, tuple[int, ...]], ParameterStatistics | None],
    ) -> _Slot:
        stand_in = torch.zeros((), dtype=meta.dtype, device=self.device).expand(meta.shape)
        is_parameter = isinstance(meta, nn.Parameter)
        tensor = nn.Parameter(stand_in, requires_grad=False) if is_parameter else stand_in.clone()
        statistics = statistics_of(name, tuple(meta.shape)) if is_parameter and meta.is_floating_point() else None
        slot = _Slot(tensor, [], recipe, statistics, stand_in)
        if is_parameter:
            self._by_key[storage_key(stand_in)] = slot
            self.recorder.absent[storage_key(stand_in)] = StorageWeakRef(stand_in.untyped_storage())
        return slot

    def _set(self, name: str, value: Tensor) -> None:
        parent, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(parent)
        store: Any = module._parameters if leaf in module._parameters else module._buffers
        store[leaf] = value

    def _slots_of(self, names: Iterable[str]) -> list[_Slot]:
        return list({id(slot): slot for name in names if (slot := self._slots.get(name))}.values())

    def is_loaded(self, names: Iterable[str]) -> bool:
        """Return whether all of the parameters are there."""
        return all(slot.loaded for slot in self._slots_of(names))

    def load(self, names: Iterable[str], *, pin: bool = False) -> None:
        """Place the parameters in the model; `pin` keeps them to the end, as does coming back to them once more."""
        for slot in self._slots_of(names):
            slot.pinned |= pin or slot.users < 1
            if not slot.loaded:
                self._place(slot, self._value_of(slot))

    def load_rest(self, units: Iterable[Unit]) -> None:
        """Place what belongs to no unit, and buffers: small, used between blocks."""
        within = {id(slot) for unit in units for slot in self._slots_of(unit.parameters)}
        rest = [name for name, slot in self._slots.items() if id(slot) not in within]
        self.load(rest, pin=True)

    def _value_of(self, slot: _Slot) -> Tensor:
        name = next((name for name in slot.names if name in self._kept), None)
        if name is None:
            self._kept.update(self._read(slot.recipe))
            name = next(name for name in slot.names if name in self._kept)
        value = self._kept.pop(name)
        for other in slot.names:  # a tie that the checkpoint stores twice
            self._kept.pop(other, None)
        return value

    def _read(self, recipe: Recipe) -> dict[str, Tensor]:
        tensors = {}
        for name in recipe.source_names:
            tensors[name] = read_tensor(self.checkpoint, name)
            if self._stored is not None:
                info = self.checkpoint.tensors[name]
                raw = tensors[name].reshape(-1).view(torch.uint8).numpy()
                self._stored[name] = raw.view(info.kind.numpy).reshape(info.shape)
            self.bytes_read += self.checkpoint.tensors[name].nbytes
            self.reads[name] = self.reads.get(name, 0) + 1
        made = recipe.make(tensors)
        return {target: value for target, value in made.items() if target in self._slots}

    def take_stored(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return tensors as they were read, where they are kept, and let go of them."""
        stored = self._stored or {}
        return {name: stored.pop(name) for name in names if name in stored}

    def _place(self, slot: _Slot, value: Tensor) -> None:
        dtype = slot.tensor.dtype if slot.tensor.is_floating_point() else value.dtype
        slot.tensor.data = value.to(device=self.device, dtype=dtype).contiguous()
        slot.loaded = True
        if slot.statistics is not None:
            self.recorder.watch(slot.tensor, slot.statistics)

    def _demand(self, key: int) -> Tensor:
        """Return a weight that an operation uses while its unit is not loaded; it stays from then on."""
        slot = self._by_key[key]
        if not slot.loaded:
            slot.pinned = True
            self._place(slot, self._value_of(slot))
        return slot.tensor

    def finish(self, unit: Unit) -> None:
        """Let go of a unit that all batches have passed, but keep what a later unit is tied to."""
        for slot in self._slots_of(unit.parameters):
            slot.users -= 1
            if slot.pinned or not slot.loaded:
                continue
            if slot.users > 0:
                stored = self.checkpoint.tensors[slot.recipe.source_names[0]].kind.torch
                self._kept[slot.names[0]] = slot.tensor.data.to("cpu", getattr(torch, stored))
            slot.tensor.data = slot.stand_in
            slot.loaded = False
        self.recorder.forget_dead()

    def skip(self, unit: Unit) -> None:
        """Take a unit for finished that was passed before the run was killed."""
        for slot in self._slots_of(unit.parameters):
            slot.users -= 1

    def statistics(self) -> Mapping[str, ParameterStatistics]:
        """Return the statistics of each parameter, by every name that it has."""
        return self._statistics

    def pinned(self) -> set[str]:
        """Return the names of parameters that stay to the end."""
        return {name for name, slot in self._slots.items() if slot.pinned}

    def unfinished(self) -> set[str]:
        """Return the names of parameters that a unit which has not been finished has."""
        return {name for name, slot in self._slots.items() if slot.users > 0}
