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
        data: JSON, CSV, Parquet or text, or a folder, of text, messages, prompt and completion, image, audio or inputs
            (docs/data.md). `general`: the general set that ships. Default: a text that ships.
        kinds: Kinds of the general set, such as `novels,csv`. Default: all, with the same number of tokens of each, in
            all those of `samples` at full length.
        chats: Let a model with a chat template answer the general set's questions itself, and measure it on these chats
            too.
        only_changed: Measure only tensors that differ from this base; stop after the last.
        full: Keep the whole Σx·xᵀ of these tensors too, for Model Tailor and two-sided curvature; repeatable.
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
