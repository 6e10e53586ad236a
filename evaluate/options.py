"""How models are run to be scored. Nothing heavy is imported: the command line reads it at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..fusion.errors import DataError

# Strengths (γ or scale) that a sweep tries, those among which a benchmark chooses, and weights λ of a protection.
STRENGTHS, CHOICES, WEIGHTS = "0.3:1.0:0.1", "0.1:1.0:0.1", "0.1,0.3,1,3,10"


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How models are run.

    Attributes:
        device: auto, cpu, cuda, cuda:1, mps …
        dtype: Dtype of the forward pass. auto: float32 on a CPU, elsewhere that of the weights.
        batch_size: Samples in a batch. Default: as the suite says.
        memory: Limit for the weights, such as 12GB. A larger model is streamed from the disk. Default: what is free.
    """

    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise DataError(f"`batch_size` must be at least 1, got {self.batch_size}", options=["batch_size"])

    def arguments(self) -> dict[str, Any]:
        """Return them as `evaluate` takes them."""
        from ..fusion.checkpoint.output.layout import parse_size

        return {
            "device": self.device,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "memory_bytes": parse_size(self.memory) if self.memory else None,
        }
