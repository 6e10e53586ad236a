"""What the commands do, as functions. `import sculpt` offers them; nothing heavy is imported until one is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def statistics(
    prepared: Prepared, calibration: Calibration, *, progress: Progress = quiet
) -> tuple[Mapping[str, Curvature] | None, dict[str, Any] | None]:
    """Return the curvature that a prepared fuse is to use, and where it came from.

    None is H = I: the method has no use for curvature, or calibration is off.

    Raises:
        CurvatureError: The statistics belong to another model.
    """
    if not prepared.method.uses_curvature or not calibration.enabled:
        return None, None
    from .hessian.diagonal import DiagonalHessian

    tuned = prepared.plan.tuned[0]
    if calibration.hessian is None:
        from .hessian import calibrate as measure

        hessian = measure(
            tuned.path,
            data=calibration.data,
            samples=calibration.samples,
            max_length=calibration.max_length,
            seed=calibration.seed,
            device=calibration.device,
            only_changed=prepared.plan.base.path,
            progress=progress,
        )
    elif isinstance(calibration.hessian, (Path, str)):
        hessian = DiagonalHessian.load(calibration.hessian)
    else:
        hessian = calibration.hessian
    if not isinstance(hessian, DiagonalHessian):
        return hessian, {"source": "given in memory"}
    if hessian.provenance.model_fingerprint != tuned.fingerprint and not calibration.of_other_model:
        raise CurvatureError(
            f"the statistics were measured on `{hessian.provenance.model}`, which is not the tuned model `{tuned.path}`",
            hint="calibrate the tuned model, or accept them with `--hessian-of-other-model`",
        )
    return hessian, asdict(hessian.provenance)


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
    curvature, provenance = statistics(prepared, calibration, progress=progress)
    return execute(prepared, curvature=curvature, provenance=provenance, overwrite=overwrite, progress=progress)
