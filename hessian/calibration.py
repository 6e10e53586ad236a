"""`calibrate`: run the tuned model over samples and keep Σx² of every linear parameter.

This module imports no torch, so that its options can be checked and its help shown at once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.rows import refuse_two_meanings
from ..fusion.checkpoint.given import Given as Model
from ..fusion.checkpoint.given import takes_models
from ..fusion.checkpoint.output.guard import refuse_output
from ..fusion.progress import Progress, silent, watched
from .options import CalibrationOptions
from .store.diagonal import DiagonalHessian
from .store.file_format import STATISTICS


@watched
@takes_models("checkpoint")
def calibrate(
    checkpoint: Model,
    options: CalibrationOptions | None = None,
    *,
    output: Path | str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress = silent,
    **chosen: Any,
) -> DiagonalHessian:
    """Return Σx² of every linear parameter of a tuned model over samples of data, and write it to `output` if given.

    The model runs block by block, each weight is read once, and no more than a block is in memory. The same arguments
    give the same statistics, to the bit for the same number of threads. Under `accelerate launch` each process takes
    its share of the samples; all return the same statistics and the first writes them.

    Args:
        output: File to write; statistics of finished blocks are kept beside it, every few seconds, until it is whole,
            so that a run that was killed goes on from there (`resume`).
        chosen: Fields of `CalibrationOptions`, over those of `options`: `data`, `samples`, `device`, `full` …

    Raises:
        ModelError: transformers cannot build or run the model.
        DataError: The data cannot be read, or do not suit the model.
        CurvatureError: An activation is not finite.
        OutputError: `output` exists, and `overwrite` is not set; it touches an input; or it cannot be written.
    """
    options = replace(options or CalibrationOptions(), **chosen)
    refuse_two_meanings(options.data)
    target = None if output is None else Path(output)
    if target is not None:
        given = [found for found in (options.data, options.only_changed) if found is not None]
        refuse_output(target, [checkpoint, *given], STATISTICS, overwrite=overwrite)
    from .runner import run

    return run(Path(checkpoint), options, output=target, overwrite=overwrite, resume=resume, progress=progress)
