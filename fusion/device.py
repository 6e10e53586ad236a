"""Devices by their names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import DeviceError, first_line
from .launch import launched

if TYPE_CHECKING:
    import numpy as np
    import torch

WITHOUT_FLOAT64 = ("mps",)  # types of devices


def torch_device(name: str) -> torch.device:
    """Return the torch device of a name such as `cuda:1`; of several processes `cuda` is the one with its number.

    Raises:
        DeviceError: torch does not know it, it is not there, or it computes nothing.
    """
    import torch

    try:
        device = torch.empty(0, device=name).device
    except Exception as error:  # each backend that is not installed fails in its own way
        raise DeviceError(f"the device `{name}` cannot be used: {first_line(error)}") from error
    place = launched().local_rank
    if name == "cuda" and place is not None:
        return torch.device("cuda", place % torch.cuda.device_count())
    if device.type == "meta":
        raise DeviceError("the device `meta` cannot be used: it holds shapes and no values")
    return device


def device_of(device: torch.device, dtype: np.dtype) -> torch.device:
    """Return where arrays of a dtype are computed for this device."""
    return float64_device(device) if dtype == "float64" else device


def float64_device(device: torch.device) -> torch.device:
    """Return where float64 is computed for this device: there, or on the CPU where the device has no float64."""
    import torch

    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def all_cores() -> int:
    """Return the number of processors that this process may use, shared with those that were started beside it."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // launched().local_count)
