"""What a calibration is told; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..fusion.errors import DataError
from ..fusion.ref import Asked
from ..fusion.run.calibration import GENERAL, SampleRun


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(SampleRun):
    """What to run and what to keep.

    Attributes:
        data: A file or folder of samples: JSON, CSV, Parquet or text (docs/data.md). `general` is the general set that
            ships with sculpt. Default: a text that ships with sculpt.
        kinds: Kinds of the general set, such as `novels,csv`. Default: all. Each kind has the same number of tokens;
            together they have as many as `samples` at full length.
        chats: If the model has a chat template, let it answer the questions of the general set, and measure it on
            these chats too.
        only_changed: Measure only tensors that differ from this base, and stop after the last of them.
        full: Also keep the full matrix Σx·xᵀ of these tensors, for Model Tailor and two-sided curvature; repeatable.
    """

    data: Path | str | None = None
    kinds: tuple[str, ...] = ()
    chats: bool = True
    only_changed: Asked | None = None
    full: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "full", tuple(self.full))
        object.__setattr__(self, "kinds", tuple(self.kinds))
        if self.kinds and str(self.data) != GENERAL:
            raise DataError(f"`kinds` are of the data `{GENERAL}`, got `{self.data}`", options=["kinds"])
