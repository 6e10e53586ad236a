"""What the commands do, as functions. `import sculpt` offers them; nothing heavy is imported until one is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .fusion.curvature import Curvature
from .fusion.errors import CurvatureError, MethodError
from .fusion.fuse import Prepared, Settings, execute, prepare
from .fusion.manifest import Manifest
from .fusion.methods import AdaDare, Method
from .fusion.run import Progress

PathLike = Path | str


def quiet(_done: int, _total: int, _what: str) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Where the curvature of a fuse comes from.

    Attributes:
        hessian: A file of statistics, or statistics in memory; then nothing is calibrated.
        data: Calibration data; None is the text that ships with the package.
        enabled: False is H = I, no calibration at all.
        samples, max_length, seed, device: As for `calibrate`.
        of_other_model: Accept statistics that were not measured on this tuned model.
    """

    hessian: PathLike | Mapping[str, Curvature] | None = None
    data: PathLike | None = None
    enabled: bool = True
    samples: int = 128
    max_length: int = 512
    seed: int = 0
    device: str = "auto"
    of_other_model: bool = False

    def __post_init__(self) -> None:
        given = [
            name for name, on in (("--hessian", self.hessian is not None), ("--data", self.data is not None)) if on
        ]
        if len(given) == 2 or (given and not self.enabled):
            others = [*given, *(["--no-calibration"] if not self.enabled else [])]
            raise MethodError(f"{' and '.join(f'`{name}`' for name in others)} exclude each other")


def default_output(tuned: PathLike) -> Path:
    """Return `<tuned>-fused`, beside the tuned checkpoint."""
    path = Path(tuned).resolve()
    return path.with_name((path.stem if path.is_file() else path.name) + "-fused")


def prepare_fuse(
    base: PathLike,
    tuned: PathLike | Sequence[PathLike],
    *,
    output: PathLike | None = None,
    method: Method | None = None,
    settings: Settings | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Return a fuse that is planned from headers alone and checked, with nothing written yet.

    Raises:
        SculptError: Whatever could be found out before the long part starts.
    """
    many = [Path(tuned)] if isinstance(tuned, (Path, str)) else [Path(path) for path in tuned]
    return prepare(
        Path(base),
        many,
        output=Path(output) if output is not None else default_output(many[0]),
        method=method or AdaDare(),
        settings=settings,
        overwrite=overwrite,
    )


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The curvature that a fuse uses.

    Attributes:
        curvature: By tensor name; or block by block, as it is being measured; or None for H = I.
        provenance: Where it comes from, for the manifest.
        why_missing: Gives, after the fuse, the reason why a tensor has none.
    """

    curvature: Mapping[str, Curvature] | Iterator[Mapping[str, Curvature]] | None
    provenance: dict[str, Any] | None
    why_missing: Callable[[], Mapping[str, str]]


@contextmanager
def statistics(prepared: Prepared, calibration: Calibration, *, progress: Progress = quiet) -> Iterator[Statistics]:
    """Give the curvature that a prepared fuse is to use.

    Raises:
        CurvatureError: The statistics belong to another model.
    """
    if not prepared.method.uses_curvature or not calibration.enabled:
        yield Statistics(curvature=None, provenance=None, why_missing=dict)
    elif calibration.hessian is None:
        with _being_measured(prepared, calibration, progress) as measured:
            yield measured
    else:
        yield _measured_before(prepared, calibration)


def _measured_before(prepared: Prepared, calibration: Calibration) -> Statistics:
    from .hessian.diagonal import DiagonalHessian

    tuned, hessian = prepared.plan.tuned[0], calibration.hessian
    if isinstance(hessian, (Path, str)):
        hessian = DiagonalHessian.load(hessian)
    if not isinstance(hessian, DiagonalHessian):
        return Statistics(curvature=hessian, provenance={"source": "given in memory"}, why_missing=dict)
    if hessian.provenance.model_fingerprint != tuned.fingerprint and not calibration.of_other_model:
        raise CurvatureError(
            f"the statistics were measured on `{hessian.provenance.model}`, not on the tuned model `{tuned.path}`",
            hint="calibrate the tuned model, or accept them with `--hessian-of-other-model`",
        )
    if prepared.method.needs_gram and all(found.gram is None for found in hessian.values()):
        raise CurvatureError(
            f"{prepared.method.title} needs full Hessians, and the statistics hold their diagonals alone",
            hint="`sculpt calibrate --full '*'` measures them",
        )
    return Statistics(curvature=hessian, provenance=asdict(hessian.provenance), why_missing=lambda: hessian.why_missing)


@contextmanager
def _being_measured(prepared: Prepared, calibration: Calibration, progress: Progress) -> Iterator[Statistics]:
    from .hessian import CalibrationOptions
    from .hessian.session import Session

    tuned = prepared.plan.tuned[0]
    options = CalibrationOptions(
        data=calibration.data,
        samples=calibration.samples,
        max_length=calibration.max_length,
        seed=calibration.seed,
        device=calibration.device,
        full=("*",) if prepared.method.needs_gram else (),
        only_changed=prepared.plan.base.path if tuned.adapter else None,
    )
    seen: dict[str, None] = {}
    with Session(tuned.path, options, progress=progress) as session:

        def blocks() -> Iterator[Mapping[str, Curvature]]:
            for block in session.blocks():
                seen.update(dict.fromkeys(block.curvatures))
                yield block.curvatures

        yield Statistics(
            curvature=blocks(),
            provenance=asdict(session.provenance()),
            why_missing=lambda: session.collector.why_missing(seen),
        )


def fuse(
    base: PathLike,
    tuned: PathLike | Sequence[PathLike],
    *,
    output: PathLike | None = None,
    method: Method | None = None,
    hessian: PathLike | Mapping[str, Curvature] | None = None,
    data: PathLike | None = None,
    calibration: Calibration | bool = True,
    settings: Settings | None = None,
    overwrite: bool = False,
    progress: Progress = quiet,
) -> Manifest:
    """Fuse a base and its fine-tune into a new checkpoint; return what was done.

    Args:
        output: A folder that does not exist yet; `<tuned>-fused` by default.
        method: AdaDARE-γ with the paper's settings by default.
        hessian: Statistics from `calibrate`, as a file or in memory.
        data: Without `hessian`: calibrate on this first; by default on the text that ships with the package.
        calibration: False is H = I; a `Calibration` sets everything.

    Raises:
        SculptError: One sentence about what is wrong; nothing is left under the output's name.
    """
    if isinstance(calibration, bool):
        calibration = Calibration(hessian=hessian, data=data, enabled=calibration)
    elif hessian is not None or data is not None:
        raise MethodError("give `hessian` and `data` within `calibration`, or give no `calibration`")
    prepared = prepare_fuse(base, tuned, output=output, method=method, settings=settings, overwrite=overwrite)
    with statistics(prepared, calibration, progress=progress) as found:
        return execute(
            prepared,
            curvature=found.curvature,
            provenance=found.provenance,
            overwrite=overwrite,
            progress=progress,
        )
