"""`calibrate`: run the tuned model over samples and keep Σx² of every linear parameter.

This module imports no torch, so that its options can be checked and its help shown at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..fusion.arithmetic.curvature import Curvature
from ..fusion.checkpoint.ref import Asked
from ..fusion.errors import OutputError
from ..fusion.run.calibration import SampleRun
from .store.diagonal import DiagonalHessian

Progress = Callable[[int, int, str], None]  # done, total, what is being done


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(SampleRun):
    """What to run and what to keep.

    Attributes:
        data: JSONL or Parquet with text, messages, prompt and completion, image, audio or input_ids; .txt; a saved
            `datasets` folder; a folder of images. Default: a text that ships.
        only_changed: Measure only tensors that differ from this base; stop after the last.
        full: Keep the whole Σx·xᵀ of these tensors too, for Model Tailor and two-sided curvature; repeatable.
    """

    data: Path | str | None = None
    only_changed: Asked | None = None
    full: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "full", tuple(self.full))


def calibrate(
    checkpoint: Path | str,
    options: CalibrationOptions | None = None,
    *,
    output: Path | str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
    **chosen: Any,
) -> DiagonalHessian:
    """Return Σx² of every linear parameter of a tuned model over samples of data, and write it to `output` if given.

    The model runs block by block, each weight is read once, and no more than a block is in memory. The same arguments
    give the same statistics, to the bit for the same number of threads. Under `accelerate launch` each process takes
    its share of the samples; all return the same statistics and the first writes them.

    Args:
        output: File to write; statistics of finished blocks are kept beside it until it is whole, so that a run that
            was killed goes on from there (`resume`).
        chosen: Fields of `CalibrationOptions`, over those of `options`: `data`, `samples`, `device`, `full` …

    Raises:
        ModelError: transformers cannot build or run the model.
        DataError: The data cannot be read, or do not suit the model.
        CurvatureError: An activation is not finite.
        OutputError: `output` exists, and `overwrite` is not set.
    """
    options = replace(options or CalibrationOptions(), **chosen)
    target = None if output is None else Path(output)
    if target is not None and target.exists() and not overwrite:
        raise OutputError(f"`{target}` exists", hint="`--overwrite` replaces it")
    from .runner import run

    return run(Path(checkpoint), options, output=target, resume=resume, progress=progress)


def iter_calibrate(
    checkpoint: Path | str, options: CalibrationOptions, *, progress: Progress | None = None
) -> Iterator[dict[str, Curvature]]:
    """Yield the statistics of each tensor once they are whole, as block after block finishes.

    Every tensor that has statistics comes once. What is used throughout the model, such as a tied embedding, comes
    last.

    Raises:
        ModelError: As `calibrate`; also for a model that returns to a block whose statistics were handed out.
    """
    from .session import Session

    with Session(Path(checkpoint), options, progress=progress) as session:
        for block in session.blocks():
            if block.curvatures:
                yield dict(block.curvatures)
