"""What a fuse is told of calibration. Nothing heavy is imported: the command line reads it at start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..arithmetic.curvature import Curvature
from ..errors import DataError, MethodError
from ..rows import RowOptions

PathLike = Path | str
Given = PathLike | Mapping[str, Curvature]  # a file of statistics, or statistics in memory
SHIPPED = "default"  # the name of the text that ships with the package
STATISTICS = ".safetensors"  # what a file of statistics ends with; any other is data
FROM_DELTA = "delta"  # in place of a model's samples or statistics: its delta stands in for them


@dataclass(frozen=True, kw_only=True)
class SampleRun(RowOptions):
    """How samples are read and run through a model.

    Attributes:
        samples: Most samples to run.
        max_length: Longest sample in tokens.
        seed: Of the choice among more samples than asked for.
        batch_size: Samples a batch; 1 has no padding.
        count: all tokens, or completion: only those that are to be predicted, as a loss mask says.
        device: auto, cpu, cuda, cuda:1, mps …
        dtype: Of the forward. auto: float32 on a CPU, else the weights' own.
        auto_class: transformers class to run, such as AutoModelForMaskedLM. Default: the config's.
        memory: What activations between blocks may take, such as 4GB; above, disk is used. Default: half of what is
            free.
        trust_remote_code: Run model code that lies in the folder. Read it first.
    """

    samples: int = 128
    max_length: int = 512
    seed: int = 0
    batch_size: int = 1
    count: Literal["all", "completion"] = "all"
    device: str = "auto"
    dtype: str = "auto"
    auto_class: str | None = None
    memory: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples", "max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise DataError(f"`{name}` must be at least 1, got {getattr(self, name)}", options=[name])
        if self.count not in ("all", "completion"):
            raise DataError(f"`count` must be all or completion, got `{self.count}`", options=["count"])


@dataclass(frozen=True, kw_only=True)
class Calibration(SampleRun):
    """Where the curvature of a fuse comes from.

    Attributes:
        hessian: Statistics that `sculpt calibrate` wrote, or statistics in memory; then nothing is calibrated. Several
            tuned models have one each, in their order, `delta` for one that has none.
        data: Samples of the target task to calibrate on first, as `sculpt calibrate` takes them. For all tuned models,
            or one each, `delta` for one that has none. Default: a text that ships; where the base is protected, the
            delta.
        enabled: Calibrate; without, H = I: all directions alike.
        of_other_model: Accept statistics that were measured on another model.
        protect: General samples that the base is to stay good on: data as for the target's, `default` for the text
            that ships, or the base's statistics from `sculpt calibrate BASE --full '*'`.
        protect_samples: How many general samples.
    """

    hessian: Given | Sequence[Given] | None = None
    data: PathLike | Sequence[PathLike] | None = None
    enabled: bool = True
    of_other_model: bool = False
    protect: Given | None = None
    protect_samples: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protect_samples < 1:
            raise DataError(
                f"`protect_samples` must be at least 1, got {self.protect_samples}", options=["protect_samples"]
            )
        if self.hessian is not None and self.data is not None:
            raise MethodError("`hessian` and `data` exclude each other", options=["hessian", "data"])
        if not self.enabled:
            for name in ("hessian", "data", "protect"):
                if getattr(self, name) is not None:
                    raise MethodError(f"`{name}` has no use where nothing is calibrated", options=[name])

    def refuse_missing(self) -> None:
        """Refuse files that are not there, before anything long is begun.

        Raises:
            DataError: One is not.
        """
        for given in (self.hessian, self.data):
            for path in given if isinstance(given, (list, tuple)) else [given]:
                if isinstance(path, (Path, str)) and str(path) != FROM_DELTA and not Path(path).exists():
                    raise DataError(f"`{path}` does not exist")

    @property
    def protects_shipped(self) -> bool:
        """Whether the general side is measured on the text that ships."""
        return self.protect is None or (isinstance(self.protect, str) and self.protect == SHIPPED)

    @property
    def has_samples(self) -> bool:
        """Whether samples or statistics of the target task were given: this one's own, not those of a list."""
        given = self.hessian if self.hessian is not None else self.data
        return given is not None and not (isinstance(given, (Path, str)) and str(given) == FROM_DELTA)

    def of_general(self) -> Calibration:
        """Return the same for the general side: what it is measured on, or its statistics."""
        protect = None if self.protects_shipped else self.protect
        data = protect if isinstance(protect, (Path, str)) and Path(protect).suffix != STATISTICS else None
        known = protect if data is None else None
        return replace(self, hessian=known, data=data, samples=self.protect_samples, protect=None)

    def of_tuned(self, num_models: int) -> list[Calibration]:
        """Return the same for each tuned model.

        Raises:
            MethodError: There are statistics for another number of models.
        """
        hessians = _one_each("statistics", self.hessian, num_models, shared=False)
        data = _one_each("samples", self.data, num_models, shared=True)
        return [replace(self, hessian=h, data=d) for h, d in zip(hessians, data, strict=True)]


def _one_each(what: str, given: Any, num_models: int, *, shared: bool) -> list[Any]:
    if given is None:
        return [None] * num_models
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(found) == 1 and shared:
        return found * num_models
    if len(found) != num_models:
        wanted = "one tuned model" if num_models == 1 else f"{num_models} tuned models"
        raise MethodError(f"there {'is' if num_models == 1 else 'are'} {wanted}, and {what} of {len(found)}")
    return found
