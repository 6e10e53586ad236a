"""What a calibration is told; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..fusion.errors import DataError


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What to run and what to keep.

    Attributes:
        data: File or folder; None is the text that ships with sculpt.
        samples: Most samples to run.
        max_length: Longer samples are cut.
        seed: Of the choice among more samples than asked for.
        batch_size: Samples a batch; 1 has no padding.
        device: `auto`, or as torch names it.
        dtype: Of the forward: `auto` is float32 on a CPU and the weights' own on an accelerator.
        only_changed: A base checkpoint; only tensors that differ from it are measured, and the forward ends after the
            last.
        full: Globs of tensors whose whole Σx·xᵀ is kept too.
        auto_class: transformers class to run instead of the one that the config names.
        memory: Bytes that activations between blocks may take; above, they go to disk. None is half of what is free.
        trust_remote_code: Whether code in the model's folder may run.
    """

    data: Path | str | None = None
    samples: int = 128
    max_length: int = 512
    seed: int = 0
    batch_size: int = 1
    device: str = "auto"
    dtype: str = "auto"
    only_changed: Path | str | None = None
    full: tuple[str, ...] = ()
    auto_class: str | None = None
    memory: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise DataError(f"`{name}` is {getattr(self, name)}, but must be at least 1")
