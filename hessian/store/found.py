"""Statistics that `calibrate` wrote where nobody said where: beside the model, named after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...fusion.checkpoint import ModelRef, Source
from ...fusion.errors import CurvatureError
from .diagonal import DiagonalHessian

ENDING = "-hessian.safetensors"


def default_file(model: ModelRef) -> Path:
    """Return where statistics of a model are put by default."""
    return model.beside(ENDING)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Statistics that lie where those of a model are put by default.

    Attributes:
        told: What they are of, for a sentence.
        why_not: Why they are of no use, or None.
    """

    file: Path
    told: str = ""
    why_not: str | None = None


def find_statistics(model: Source, *, full: bool, purpose: str) -> Found | None:
    """Return the statistics of a model that lie where `calibrate` puts them, or None.

    Args:
        full: Whether the whole Σx·xᵀ is wanted.
        purpose: What wants them.
    """
    file = default_file(model.ref)
    if not file.is_file():
        return None
    try:
        hessian = DiagonalHessian.load(file)
    except CurvatureError as error:
        return Found(file=file, why_not=error.message)
    about = hessian.provenance
    told = f"{about.num_samples} samples of {about.data}"
    if about.model_fingerprint != model.fingerprint:
        return Found(file=file, told=told, why_not=f"they were measured on another model called `{about.model}`")
    if full and all(own.gram is None for own in hessian.values()):
        return Found(file=file, told=told, why_not=f"they hold only diagonals, and {purpose} needs full matrices")
    return Found(file=file, told=told)
