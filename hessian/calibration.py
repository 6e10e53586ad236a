"""`calibrate`: run the tuned model over samples and keep Σx² of every linear parameter.

This module imports no torch, so that its options can be checked and its help shown at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..fusion.arithmetic.curvature import Curvature
from ..fusion.errors import DataError, OutputError
from .store.diagonal import DiagonalHessian

if TYPE_CHECKING:
    from ..fusion.checkpoint import Asked

Progress = Callable[[int, int, str], None]  # done, total, what is being done


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
    only_changed: Asked | None = None
    full: tuple[str, ...] = ()
    auto_class: str | None = None
    memory: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise DataError(f"`{name}` is {getattr(self, name)}, but must be at least 1")


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
    progress: Progress | None = None,
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
