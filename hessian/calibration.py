"""`calibrate`: run the tuned model over samples and keep Σx² of every linear parameter.

This module imports no torch, so that its options can be checked and its help shown at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..fusion.errors import OutputError
from ..fusion.progress import Progress, silent
from .options import CalibrationOptions
from .store.diagonal import DiagonalHessian


def calibrate(
    checkpoint: Path | str,
    *,
    data: Path | str | None = None,
    output: Path | str | None = None,
    samples: int = 128,
    max_length: int = 512,
    seed: int = 0,
    batch_size: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    only_changed: Path | str | None = None,
    full: Sequence[str] = (),
    auto_class: str | None = None,
    memory: int | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress = silent,
) -> DiagonalHessian:
    """Return Σx² of every linear parameter of a tuned model over samples of data, and write it to `output` if given.

    The model runs block by block, each weight is read once, and no more than a block is in memory. The same arguments
    give the same statistics, to the bit for the same number of threads. Under `accelerate launch` each process takes
    its share of the samples; all return the same statistics and the first writes them. What the options mean is told
    by `CalibrationOptions`.

    Args:
        output: File to write; statistics of finished blocks are kept beside it until it is whole, so that a run that
            was killed goes on from there (`resume`).

    Raises:
        ModelError: transformers cannot build or run the model.
        DataError: The data cannot be read, or do not suit the model.
        CurvatureError: An activation is not finite.
        OutputError: `output` exists, and `overwrite` is not set.
    """
    options = CalibrationOptions(
        data=data, samples=samples, max_length=max_length, seed=seed, batch_size=batch_size, device=device,
        dtype=dtype, only_changed=only_changed, full=tuple(full), auto_class=auto_class, memory=memory,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    target = None if output is None else Path(output)
    if target is not None and target.exists() and not overwrite:
        raise OutputError(f"`{target}` exists", hint="`--overwrite` replaces it")
    from .runner import run

    return run(Path(checkpoint), options, output=target, resume=resume, progress=progress)
