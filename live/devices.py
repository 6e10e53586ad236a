"""Where a calibration runs: device, dtype of the forward, memory for activations."""

from __future__ import annotations

import torch

from ..fusion.checkpoint import Source
from ..fusion.device import torch_device
from ..fusion.dtypes import SHORT
from ..fusion.errors import ModelError, near

COMPUTED = ("float32", "bfloat16", "float16", "float64")


def pick_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is an accelerator where there is one.

    Raises:
        DeviceError: torch does not know it, or it is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch_device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    return torch_device(name)


def compute_dtype(name: str, checkpoint: Source, device: torch.device) -> torch.dtype:
    """Return the dtype of the forward: float32 on a CPU, on an accelerator the dtype of most of the weights."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else stored_dtype(checkpoint)
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(
            f"`{name}` is not a dtype to compute in",
            hint=near(SHORT.get(name.lower(), name), COMPUTED) or "float32, bfloat16, float16 or auto",
        )
    return dtype


def stored_dtype(checkpoint: Source) -> torch.dtype:
    """Return the dtype of most of the weights; float32 where none is of floats."""
    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        if info.kind.fusible:
            sizes[info.kind.torch] = sizes.get(info.kind.torch, 0) + info.nbytes
    return getattr(torch, max(sizes, key=lambda key: (sizes[key], key)) if sizes else "float32")


def activation_budgets(memory: int | None, device: torch.device) -> tuple[int, int]:
    """Return the bytes that activations may take where batches run, and beside an accelerator in the host's memory.

    Of each what was asked for, or half of what is free.
    """
    import psutil

    host = psutil.virtual_memory().available // 2 if memory is None else memory
    if device.type != "cuda":  # others share the host's memory, or tell nothing of their own
        return host, 0
    return torch.cuda.mem_get_info(device)[0] // 2 if memory is None else memory, host
