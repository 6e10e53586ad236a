"""The k + 1 numbers that are learned: `α_i = σ(c_i)·b`, `b = 1 + (b_max − 1)·σ(b_raw)`.

Coleman, Quarantiello, Hurtado, Lomonaco: adaptive LoRA merging for domain-incremental learning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fusion.errors import MethodError


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """What was learned.

    Attributes:
        alpha: α, the weight of each adapter.
        b: The strength that they share, between 1 and b_max.
        b_max: Its bound.
    """

    alpha: tuple[float, ...]
    b: float
    b_max: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"alpha": list(self.alpha), "b": self.b, "b_max": self.b_max}


class Learnable:
    """c and b_raw, all 0 at the start: each α begins at half of the middle of what b may be."""

    def __init__(self, num_adapters: int, b_max: float) -> None:
        if not (math.isfinite(b_max) and b_max >= 1):
            raise MethodError(f"`b_max` must be at least 1, got {b_max:g}", options=["b_max"])
        self.b_max = b_max
        self.c = torch.zeros(num_adapters, dtype=torch.float64, requires_grad=True)
        self.b_raw = torch.zeros((), dtype=torch.float64, requires_grad=True)

    @property
    def parameters(self) -> list[Tensor]:
        """What an optimiser moves."""
        return [self.c, self.b_raw]

    def b(self) -> Tensor:
        """Return b."""
        return 1 + (self.b_max - 1) * torch.sigmoid(self.b_raw)

    def alpha(self) -> Tensor:
        """Return α, shape (num_adapters,)."""
        return torch.sigmoid(self.c) * self.b()

    def value(self) -> Coefficients:
        """Return them as numbers."""
        with torch.no_grad():
            return Coefficients(alpha=tuple(self.alpha().tolist()), b=float(self.b()), b_max=self.b_max)
