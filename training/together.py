"""Several processes that train one adapter, as `accelerate launch` starts them for transformers' trainer."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from ..fusion.errors import ModelError
from ..fusion.launch import Launch

T = TypeVar("T")


def join(device: str) -> Launch:
    """Return this process's place, and connect to the others where a launcher started several.

    Raises:
        ModelError: The others cannot be reached.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return Launch(rank=dist.get_rank(), count=dist.get_world_size())
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Launch()
    from accelerate import PartialState

    try:
        state = PartialState(cpu=device == "cpu")
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the processes of `accelerate launch` cannot be connected: {error}") from error
    return Launch(rank=state.process_index, count=state.num_processes)


def from_first(value: T | None, launch: Launch) -> T:
    """Return what the first process has, in all."""
    shared: list[Any] = [value]
    if launch.count > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(shared, src=0)
    return shared[0]
