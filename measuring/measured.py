"""The statistics of one model: from a file, from memory, kept from an earlier run, or measured block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..fusion.arithmetic.curvature import Curvature, digest_of_curvature
from ..fusion.checkpoint import ModelRef, Source
from ..fusion.checkpoint.output.processes import Processes
from ..fusion.errors import CurvatureError
from ..fusion.progress import Progress
from ..fusion.record.files import file_digest
from ..fusion.run.calibration import GENERAL, Calibration, SampleRun
from ..fusion.run.prepared import Prepared
from .models import A_TUNED_MODEL, MeasuredModel

if TYPE_CHECKING:
    from ..hessian import CalibrationOptions
    from ..hessian.session import Session


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Statistics of one model.

    Attributes:
        curvature: By its own tensors' names; or block by block, as it is being measured.
    """

    curvature: Mapping[str, Curvature] | Iterator[Mapping[str, Curvature]]
    provenance: dict[str, Any]
    why_missing: Callable[[], Mapping[str, str]]
    notes: tuple[str, ...] = ()


def measured(
    model: MeasuredModel, calibration: Calibration, progress: Progress, stack: ExitStack, prepared: Prepared
) -> Measured:
    """Return a model's statistics, of wherever they come from; a model that is run is let go with the stack.

    Raises:
        CurvatureError: Statistics that were given belong to another model, or lack matrices.
    """
    if calibration.hessian is not None:
        return _measured_before(model, calibration, prepared.settings.digest)
    if (kept := _kept(model, calibration, progress, prepared)) is not None:
        return kept
    from ..hessian.parallel import in_step

    if prepared.processes.are_several:  # before the samples are drawn, as answers among them are shared
        stack.enter_context(prepared.processes.meet(prepared.output, made_by="fuse"))
    session = stack.enter_context(_session(model, calibration, progress, prepared.processes))
    seen: dict[str, None] = {}

    def blocks() -> Iterator[Mapping[str, Curvature]]:
        for block in in_step(session.blocks(), prepared.processes):
            seen.update(dict.fromkeys(block))
            yield block

    return Measured(
        curvature=blocks(),
        provenance=asdict(session.provenance()),
        why_missing=lambda: session.collector.why_missing(seen),
    )


def _keeps(place: int, calibration: Calibration, prepared: Prepared) -> bool:
    """Return whether what is measured is a base's on the general set, which its next fine-tune wants too."""
    may = calibration.protect_keep and calibration.data == GENERAL and not place
    return may and not prepared.processes.are_several


def is_kept_before(source: Source, place: int, calibration: Calibration, prepared: Prepared) -> bool:
    """Return whether a model need not be run, as its statistics are kept from an earlier fuse."""
    from ..hessian.kept import is_kept

    protection = prepared.settings.protection
    full = protection is not None and protection.needs_gram
    return _keeps(place, calibration, prepared) and is_kept(source, _options(calibration, full=full, base=None))


def _kept(model: MeasuredModel, calibration: Calibration, progress: Progress, prepared: Prepared) -> Measured | None:
    """Return statistics of a base on the general set that are kept for its next fine-tune; None where they are not."""
    if not _keeps(model.place, calibration, prepared):
        return None
    from ..hessian.kept import kept_statistics

    found = kept_statistics(model.checkpoint, _options(calibration, full=model.full, base=model.base), progress)
    if found is None:
        return None
    return Measured(
        curvature=found.hessian,
        provenance=asdict(found.hessian.provenance),
        why_missing=lambda: found.hessian.why_missing,
        notes=(found.told,),
    )


def _measured_before(model: MeasuredModel, calibration: Calibration, algorithm: str) -> Measured:
    """Return statistics that were measured before; the provenance has a digest of all that they say."""
    from ..hessian.store.diagonal import DiagonalHessian

    hessian: Any = calibration.hessian
    if isinstance(hessian, (Path, str)):
        file = Path(hessian)
        hessian = DiagonalHessian.load(file)
        digest = {"file": file_digest(file, algorithm)}
    else:
        digest = {"content": f"xxh3-128:{digest_of_curvature(hessian)}"}
    if not isinstance(hessian, DiagonalHessian):
        return Measured(curvature=hessian, provenance={"source": "given in memory", **digest}, why_missing=dict)
    if hessian.provenance.model_fingerprint != model.checkpoint.fingerprint and not calibration.of_other_model:
        raise CurvatureError(
            f"the statistics were measured on `{hessian.provenance.model}`, "
            f"not on the {model.role} `{model.checkpoint.ref}`",
            hint=_is_of(hessian.provenance.model_fingerprint, model)
            + f"calibrate the {model.role}, or accept them with `of_other_model`",
            options=["Calibration.of_other_model"],
        )
    wanted = model.checkpoint.tensors if model.wanted is None else model.wanted
    is_own = hessian.provenance.model_fingerprint == model.checkpoint.fingerprint
    if not is_own and not any(name in hessian for name in wanted):
        raise CurvatureError(
            f"the statistics were measured on `{hessian.provenance.model}`, and none of their tensors is one of the "
            f"{model.role} `{model.checkpoint.ref}`",
            hint=f"calibrate the {model.role}",
        )
    if model.full and all(found.gram is None for found in hessian.values()):
        raise CurvatureError(
            f"{model.purpose} needs full Hessians, and the statistics of the {model.role} hold only diagonals",
            hint="`sculpt calibrate --full '*'` measures them",
        )
    return Measured(
        curvature=hessian, provenance={**asdict(hessian.provenance), **digest}, why_missing=lambda: hessian.why_missing
    )


def _is_of(fingerprint: str, model: MeasuredModel) -> str:
    """Return whose statistics they are, if they are of another model of the fuse."""
    whose = model.others.get(fingerprint)
    if whose is None:
        return ""
    mixed_up = model.place and whose == A_TUNED_MODEL
    why = "are they in the order of the models" if mixed_up else "are base and tuned swapped"
    return f"they belong to {whose}: {why}? If not, "


def _options(calibration: Calibration, *, full: bool, base: ModelRef | None) -> CalibrationOptions:
    from ..hessian import CalibrationOptions

    return CalibrationOptions(
        data=calibration.data,  # pyright: ignore[reportArgumentType] (`of_tuned` made it one)
        kinds=calibration.protect_kinds if calibration.data == GENERAL else (),
        chats=calibration.protect_chats,
        full=("*",) if full else (),
        only_changed=base,
        **{field.name: getattr(calibration, field.name) for field in fields(SampleRun)},
    )


def _session(model: MeasuredModel, calibration: Calibration, progress: Progress, processes: Processes) -> Session:
    from ..hessian.session import Session

    opened = model.checkpoint if model.checkpoint.is_lent else model.checkpoint.ref
    options = _options(calibration, full=model.full, base=model.base)
    return Session(opened, options, progress=progress, processes=processes, wanted=model.wanted)
