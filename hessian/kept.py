"""A base's statistics on the general set: measured once for all of its fine-tunes, and kept in the cache folder."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..data.general import digest_of_set
from ..fusion.cache import default_cache, keep_within
from ..fusion.checkpoint import Source
from ..fusion.checkpoint.output.workspace import SUFFIX, is_marked
from ..fusion.digests import digest_of_facts
from ..fusion.disk_space import free_bytes
from ..fusion.errors import CurvatureError, OutputError
from ..fusion.progress import Progress
from ..fusion.run.calibration import STATISTICS
from .forecast import matrix_bytes
from .options import CalibrationOptions
from .store.diagonal import DiagonalHessian

logger = logging.getLogger(__name__)

ALL_BYTES = 8 << 30  # of all bases together; those that were longest not used go first
OF_FREE = 4  # what part of the free disk may be taken, 1/4
FORGOTTEN_SECONDS = 86_400.0  # after which what a killed run left, and no run went on with, is removed
PACKAGES = ("checkpoint-sculpt", "numpy", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class KeptStatistics:
    """Statistics in the cache folder.

    Attributes:
        told: A sentence about where they are from.
    """

    hessian: DiagonalHessian
    told: str


def kept_statistics(checkpoint: Source, options: CalibrationOptions, progress: Progress) -> KeptStatistics | None:
    """Return a base's statistics on the general set, measured first where they are not kept yet.

    They are of all of its tensors, whichever a fine-tune has changed. None where they are not kept: of models that lie
    in no file of their own, where they are too large, or where they cannot be written.

    Raises:
        SculptError: As `calibrate` does.
    """
    if checkpoint.is_lent or checkpoint.base is not None:
        return None
    file = _file(checkpoint, options)
    known = _read(file)
    if known is not None:
        return KeptStatistics(hessian=known, told=f"the base's statistics are those that an earlier run kept in {file}")
    size = 2 * matrix_bytes(checkpoint.tensors.values()) if options.full else 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if size > ALL_BYTES // 2 or size > free_bytes(file.parent) // OF_FREE:
            return None
        from .runner import run

        hessian = run(checkpoint, options, output=file, overwrite=True, resume=True, progress=progress)
        _tidy(file.parent)
    except (OSError, OutputError) as error:  # such as another run that measures the same now
        logger.warning("the base's statistics are not kept for later runs: %s", error)
        return None
    return KeptStatistics(hessian=hessian, told=f"the base's statistics are kept in {file} for its next fine-tune")


def is_kept(checkpoint: Source, options: CalibrationOptions) -> bool:
    """Return whether a base's statistics are there."""
    return not checkpoint.is_lent and _file(checkpoint, options).is_file()


def _file(checkpoint: Source, options: CalibrationOptions) -> Path:
    facts = {
        "model": checkpoint.resume_key(),
        "beside": checkpoint.companions_key(),
        "options": repr(options),
        "set": digest_of_set(),
        "versions": [version(package) for package in PACKAGES],
    }
    return default_cache() / "general" / f"{digest_of_facts(facts)[:32]}{STATISTICS}"


def _read(file: Path) -> DiagonalHessian | None:
    if not file.is_file():
        return None
    try:
        found = DiagonalHessian.load(file)
        file.touch()
    except (OSError, CurvatureError) as error:
        logger.warning("`%s` of an earlier run is not used: %s", file, error)
        with suppress(OSError):
            file.unlink()
        return None
    return found


def _tidy(folder: Path) -> None:
    """Remove what was longest not used, and what killed runs left that nobody went on with."""
    keep_within(folder, ALL_BYTES)
    for left in _forgotten(folder):
        shutil.rmtree(left, ignore_errors=True)


def _forgotten(folder: Path) -> Iterator[Path]:
    for left in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            last = max(file.stat().st_mtime for file in (left, *left.rglob("*")))
            if is_marked(left) and time.time() - last > FORGOTTEN_SECONDS:
                yield left
