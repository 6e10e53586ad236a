"""Several processes, as `accelerate launch` starts them: each runs its share of the samples, sums are added up.

Sums are gathered to every process and added in the order of ranks, in float64. The result is that of one process with
as many threads, but for the order of additions; the number of threads moves the float32 forward itself in its last
bits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..fusion.arithmetic.curvature import Curvature
from ..fusion.errors import ModelError
from .store.diagonal import add_curvature
from .store.gram_store import GramStore, by_block, with_summed_grams

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among all of them."""

    rank: int
    count: int

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0


def join(device: str) -> Processes:
    """Return this process's place, and connect to the others where a launcher started several.

    Raises:
        ModelError: The others cannot be reached.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return Processes(rank=dist.get_rank(), count=dist.get_world_size())
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes(rank=0, count=1)
    from accelerate import PartialState

    try:
        state = PartialState(cpu=device == "cpu")
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the processes of `accelerate launch` cannot be connected: {error}") from error
    return Processes(rank=state.process_index, count=state.num_processes)


def own_device(device: str) -> str:
    """Return the accelerator of this process where `auto` would give all of them the same."""
    rank = os.environ.get("LOCAL_RANK")
    if device != "auto" or rank is None:
        return device
    import torch

    return f"cuda:{int(rank) % torch.cuda.device_count()}" if torch.cuda.is_available() else device


def add_up(
    curvatures: Mapping[str, Curvature],
    why_missing: Mapping[str, str],
    processes: Processes,
    store: GramStore | None = None,
) -> tuple[dict[str, Curvature], dict[str, str]]:
    """Return the statistics of all processes together, and why tensors have none in any of them."""
    if processes.count == 1:
        return dict(curvatures), dict(why_missing)
    import torch.distributed as dist

    gathered: list[Any] = [None] * processes.count
    without = {name: replace(curvature, gram=None) for name, curvature in curvatures.items()}
    dist.all_gather_object(gathered, (without, dict(why_missing)))
    total: dict[str, Curvature] = {}
    reasons: dict[str, str] = {}
    for found, missing in gathered:
        reasons |= {name: reason for name, reason in missing.items() if name not in reasons}
        for name, curvature in found.items():
            total[name] = add_curvature(total[name], curvature) if name in total else curvature
    _add_grams(total, curvatures, processes, store)
    return total, {name: reason for name, reason in reasons.items() if name not in total}


def _add_grams(
    total: dict[str, Curvature], curvatures: Mapping[str, Curvature], processes: Processes, store: GramStore | None
) -> None:
    """Add up Σ x·xᵀ a block at a time."""
    import torch.distributed as dist

    for names in by_block(total):
        gathered: list[Any] = [None] * processes.count
        dist.all_gather_object(gathered, {name: curvatures[name].gram for name in names if name in curvatures})
        block = with_summed_grams({name: total[name] for name in names}, gathered)
        total |= block if store is None else store.keep(block)


def from_first(value: T | None, processes: Processes) -> T:
    """Return what the first process has, in all."""
    shared: list[Any] = [value]
    if processes.count > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(shared, src=0)
    return shared[0]


def wait(processes: Processes) -> None:
    """Return once all processes have come here."""
    if processes.count > 1:
        import torch.distributed as dist

        dist.barrier()
