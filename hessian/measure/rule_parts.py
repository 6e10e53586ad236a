"""What rules share: counts of rows, and biases, whose input is 1 once a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...fusion.device import float64_device
from .moments import wide

if TYPE_CHECKING:
    from .recorder import Recorder


def counts_of(value: float | Tensor, ndim: int, device: torch.device) -> Tensor:
    """Return a count as a tensor that broadcasts to `ndim` axes."""
    if isinstance(value, Tensor):
        return value.to(device).reshape((1,) * ndim)
    return torch.full((1,) * ndim, value, dtype=torch.float64, device=float64_device(device))


def total_of(weights: Tensor | None, count: int) -> float | Tensor:
    """Return how many rows count, of `count` rows with these weights; of those a tensor: nothing waits for a device."""
    return float(count) if weights is None else wide(weights).sum()


def record_bias(recorder: Recorder, bias: Tensor | None, count: float | Tensor) -> None:
    """Record a bias: its input is 1, once a row."""
    use = recorder.use_of(bias)
    if bias is None or use is None:
        return
    values = counts_of(count, bias.ndim, bias.device)
    use.statistics.add(use.placement, values, values)
