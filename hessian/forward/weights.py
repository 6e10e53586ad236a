"""Weights of one unit at a time: read once from the checkpoint, converted, placed in the model, and let go of.

A parameter that is not loaded is a stand-in: right shape, dtype and device, one element of memory. Parameters keep
their identity throughout, so ties and references to them hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...fusion.checkpoint import Source
from ...fusion.errors import ModelError
from ...live.model import read_tensor
from ...live.names import Assembly
from ...live.privates import StorageWeakRef, set_tensor, storage_key
from ...live.skeleton import Skeleton
from ...live.units import Unit
from ..measure.recorder import Recorder
from ..measure.statistics import ParameterStatistics
from .ahead import Ahead

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(eq=False)
class _Slot:
    """A parameter or buffer of the model that the checkpoint fills."""

    tensor: Tensor
    names: list[str]
    assembly: Assembly
    statistics: ParameterStatistics | None
    stand_in: Tensor
    users: int = 0  # units that have it and have not been finished
    pinned: bool = False
    loaded: bool = False


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
    ) -> None:
        self.checkpoint = checkpoint
        self.model = skeleton.model
        self.recorder = recorder
        self.device = device
        self.bytes_read = 0
        self.reads: dict[str, int] = {}
        self._kept: dict[str, Tensor] = {}  # converted, stored dtype, waiting to be used (again)
        self._slots: dict[str, _Slot] = {}
        self._by_key: dict[int, _Slot] = {}
        self._ahead = Ahead(checkpoint, self._made, device, self._dtype_of)
        self._make_slots(skeleton, statistics_of)
        self._statistics = {name: slot.statistics for name, slot in self._slots.items() if slot.statistics is not None}
        for unit in units:
            for slot in self._slots_of(unit.parameters):
                slot.users += 1
        recorder.demand = self._demand

    def _make_slots(
        self, skeleton: Skeleton, statistics_of: Callable[[str, tuple[int, ...]], ParameterStatistics | None]
    ) -> None:
        assemblies = {target: assembly for assembly in skeleton.names.assemblies for target in assembly.targets}
        owners: dict[int, _Slot] = {}
        named = [*self.model.named_parameters(remove_duplicate=False)]
        buffers = [*self.model.named_buffers(remove_duplicate=False)]
        for name, tensor in [*named, *buffers]:
            if not tensor.is_meta:
                continue
            slot = owners.get(id(tensor))
            if slot is None and name in assemblies:
                slot = owners[id(tensor)] = self._new_slot(name, tensor, assemblies[name], statistics_of)
            if slot is not None:
                slot.names.append(name)
                self._slots[name] = slot
        for name, tensor in [*named, *buffers]:  # names that a tied twin fills, seen before it
            if tensor.is_meta and name not in self._slots:
                slot = owners.get(id(tensor))
                if slot is None:
                    raise ModelError(f"`{name}` of `{type(self.model).__name__}` has no tensor in the checkpoint")
                slot.names.append(name)
                self._slots[name] = slot
        for name, slot in self._slots.items():
            set_tensor(self.model, name, slot.tensor)

    def _new_slot(
        self,
        name: str,
        meta: Tensor,
        assembly: Assembly,
        statistics_of: Callable[[str, tuple[int, ...]], ParameterStatistics | None],
    ) -> _Slot:
        stand_in = torch.zeros((), dtype=meta.dtype, device=self.device).expand(meta.shape)
        is_parameter = isinstance(meta, nn.Parameter)
        # As `from_pretrained` has it: torch multiplies in another order where a weight wants no gradient.
        tensor = nn.Parameter(stand_in, requires_grad=meta.requires_grad) if is_parameter else stand_in.clone()
        statistics = statistics_of(name, tuple(meta.shape)) if is_parameter and meta.is_floating_point() else None
        slot = _Slot(tensor, [], assembly, statistics, stand_in)
        if is_parameter:
            self._by_key[storage_key(stand_in)] = slot
            self.recorder.absent[storage_key(stand_in)] = StorageWeakRef(stand_in.untyped_storage())
        return slot

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
            self._kept.update(self._read(slot.assembly))
            name = next(name for name in slot.names if name in self._kept)
        value = self._kept.pop(name)
        for other in slot.names:  # a tie that the checkpoint stores twice
            self._kept.pop(other, None)
        return value

    def ask(self, names: Iterable[str]) -> None:
        """Begin to read the parameters that are wanted next, while something else is done."""
        slots = [slot for slot in self._slots_of(names) if not slot.loaded]
        slots = [slot for slot in slots if not any(name in self._kept for name in slot.names)]
        self._ahead.ask(list({id(slot.assembly): slot.assembly for slot in slots}.values()))

    def close(self) -> None:
        """Let go of what was read ahead and not used."""
        self._ahead.close()

    def _read(self, assembly: Assembly) -> Mapping[str, Tensor]:
        for name in assembly.source_names:
            self.bytes_read += self.checkpoint.tensors[name].nbytes
            self.reads[name] = self.reads.get(name, 0) + 1
        return self._ahead.taken(assembly) or self._made(assembly)

    def _made(self, assembly: Assembly) -> dict[str, Tensor]:
        made = assembly.make({name: read_tensor(self.checkpoint, name) for name in assembly.source_names})
        return _with_own_storages({target: value for target, value in made.items() if target in self._slots})

    def _dtype_of(self, name: str, value: Tensor) -> torch.dtype:
        """Return what a parameter is computed in; of numbers that are no floats, what they are stored in."""
        own = self._slots[name].tensor
        return own.dtype if own.is_floating_point() else value.dtype

    def _place(self, slot: _Slot, value: Tensor) -> None:
        dtype = self._dtype_of(slot.names[0], value)
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
                stored = self.checkpoint.tensors[slot.assembly.source_names[0]].kind.torch
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


def _with_own_storages(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share memory with no other: what a conversion splits comes out as views of one storage."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in values.items():
        shares = value.untyped_storage().nbytes() != value.nbytes or storage_key(value) in taken
        found[name] = value.clone() if shares else value
        taken.add(storage_key(value))
    return found
