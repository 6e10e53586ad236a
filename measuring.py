"""Where the curvature of a fuse comes from: statistics made before, or models that are measured on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .fusion.arithmetic.curvature import Curvature
from .fusion.arithmetic.two_sided import counted_together, paired
from .fusion.checkpoint import Checkpoint
from .fusion.errors import CurvatureError, MethodError
from .fusion.progress import Progress, silent
from .fusion.run.fuse import Prepared

if TYPE_CHECKING:
    from .hessian.session import Session

PathLike = Path | str
Given = PathLike | Mapping[str, Curvature]  # a file of statistics, or statistics in memory
SHIPPED = "default"  # the name of the text that ships with the package
STATISTICS = ".safetensors"  # what a file of statistics ends with; any other is data


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Where the curvature of a fuse comes from.

    Attributes:
        hessian: A file of statistics, or statistics in memory; then nothing is calibrated.
        data: Calibration data; None is the text that ships with the package.
        enabled: False is H = I, no calibration at all.
        samples, max_length, seed, device: As for `calibrate`.
        of_other_model: Accept statistics that were not measured on this model.
        protect: What the base is to stay good at, where `Settings.protection` is set: general data, a file of the
            base's statistics, or statistics in memory; None and `default` are the text that ships.
        protect_samples: How many general samples.
    """

    hessian: Given | None = None
    data: PathLike | None = None
    enabled: bool = True
    samples: int = 128
    max_length: int = 512
    seed: int = 0
    device: str = "auto"
    of_other_model: bool = False
    protect: Given | None = None
    protect_samples: int = 128

    def __post_init__(self) -> None:
        given = [
            name for name, on in (("--hessian", self.hessian is not None), ("--data", self.data is not None)) if on
        ]
        given += ["--protect"] * (self.protect is not None and not self.enabled)
        if {"--hessian", "--data"} <= set(given) or (given and not self.enabled):
            others = [*given, *(["--no-calibration"] if not self.enabled else [])]
            raise MethodError(f"{' and '.join(f'`{name}`' for name in others)} exclude each other")

    @property
    def protects_shipped(self) -> bool:
        """Whether the general side is measured on the text that ships."""
        return self.protect is None or (isinstance(self.protect, str) and self.protect == SHIPPED)

    def of_general(self) -> Calibration:
        """Return the same for the general side: what it is measured on, or its statistics."""
        protect = None if self.protects_shipped else self.protect
        data = protect if isinstance(protect, (Path, str)) and Path(protect).suffix != STATISTICS else None
        known = protect if data is None else None
        return replace(self, hessian=known, data=data, samples=self.protect_samples, protect=None)


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


@dataclass(frozen=True, kw_only=True)
class Side:
    """A model whose statistics are wanted.

    Attributes:
        checkpoint: The model.
        base: What an adapter is of.
        role: For messages: `tuned model` or `base`.
        wanted: Names of the tensors to measure, or None for all.
        full: Whether Σ x·xᵀ is wanted, not the diagonal alone.
        purpose: What wants it.
    """

    checkpoint: Checkpoint
    base: Path | None
    role: str
    wanted: frozenset[str] | None
    full: bool
    purpose: str


@contextmanager
def statistics(prepared: Prepared, calibration: Calibration, *, progress: Progress = silent) -> Iterator[Statistics]:
    """Give the curvature that a prepared fuse is to use.

    Raises:
        CurvatureError: The statistics belong to another model.
    """
    protection = prepared.settings.protection
    if protection is not None:
        if not calibration.enabled:
            raise MethodError("a protection wants statistics, so `--no-calibration` has no place beside it")
        with ExitStack() as stack:
            yield _both_sides(prepared, calibration, progress, stack)
    elif not prepared.method.uses_curvature or not calibration.enabled:
        yield Statistics(curvature=None, provenance=None, why_missing=dict)
    else:
        side = _target_side(prepared, wanted=None)
        with ExitStack() as stack:
            yield _one_side(side, calibration, progress, stack)


def _target_side(prepared: Prepared, *, wanted: frozenset[str] | None) -> Side:
    plan, protection = prepared.plan, prepared.settings.protection
    protects = protection is not None and protection.needs_gram
    return Side(
        checkpoint=plan.tuned[0],
        base=plan.base.path if plan.tuned[0].adapter else None,
        role="tuned model",
        wanted=wanted,
        full=prepared.method.needs_gram or protects,
        purpose=f"`--curvature {protection.curvature}`" if protection and protects else prepared.method.title,
    )


def _one_side(side: Side, calibration: Calibration, progress: Progress, stack: ExitStack) -> Statistics:
    if calibration.hessian is not None:
        return _measured_before(side, calibration)
    session = stack.enter_context(_session(side, calibration, progress))
    seen: dict[str, None] = {}

    def blocks() -> Iterator[Mapping[str, Curvature]]:
        for block in session.blocks():
            seen.update(dict.fromkeys(block))
            yield block

    return Statistics(
        curvature=blocks(),
        provenance=asdict(session.provenance()),
        why_missing=lambda: session.collector.why_missing(seen),
    )


def _measured_before(side: Side, calibration: Calibration) -> Statistics:
    from .hessian.store.diagonal import DiagonalHessian

    hessian = calibration.hessian
    if isinstance(hessian, (Path, str)):
        hessian = DiagonalHessian.load(hessian)
    if not isinstance(hessian, DiagonalHessian):
        return Statistics(curvature=hessian, provenance={"source": "given in memory"}, why_missing=dict)
    if hessian.provenance.model_fingerprint != side.checkpoint.fingerprint and not calibration.of_other_model:
        raise CurvatureError(
            f"the statistics were measured on `{hessian.provenance.model}`, "
            f"not on the {side.role} `{side.checkpoint.path}`",
            hint=f"calibrate the {side.role}, or accept them with `--hessian-of-other-model`",
        )
    if side.full and all(found.gram is None for found in hessian.values()):
        raise CurvatureError(
            f"{side.purpose} needs full Hessians, and the statistics of the {side.role} hold their diagonals alone",
            hint="`sculpt calibrate --full '*'` measures them",
        )
    return Statistics(curvature=hessian, provenance=asdict(hessian.provenance), why_missing=lambda: hessian.why_missing)


def _session(side: Side, calibration: Calibration, progress: Progress) -> Session:
    from .hessian import CalibrationOptions
    from .hessian.session import Session

    options = CalibrationOptions(
        data=calibration.data,
        samples=calibration.samples,
        max_length=calibration.max_length,
        seed=calibration.seed,
        device=calibration.device,
        full=("*",) if side.full else (),
        only_changed=side.base,
    )
    return Session(side.checkpoint.path, options, progress=progress, wanted=side.wanted)


def _both_sides(prepared: Prepared, calibration: Calibration, progress: Progress, stack: ExitStack) -> Statistics:
    """Return the target's statistics and the base's, measured in step where they are not given."""
    plan, protection = prepared.plan, prepared.settings.protection
    assert protection is not None
    base_names = _changed(prepared)
    target_side = _target_side(prepared, wanted=frozenset(base_names))
    general_side = Side(
        checkpoint=plan.base,
        base=None,
        role="base",
        wanted=frozenset(base_names.values()),
        full=protection.needs_gram,
        purpose=target_side.purpose,
    )
    both = _Progress(progress)
    target = _one_side(target_side, calibration, both.of(0), stack)
    general = _one_side(general_side, calibration.of_general(), both.of(1), stack)
    given = [found.curvature for found in (target, general)]
    if all(isinstance(curvature, Mapping) for curvature in given):
        ours, theirs = (counted_together(curvature) for curvature in given if isinstance(curvature, Mapping))
        curvature: Any = paired(ours, theirs, base_names)
    elif prepared.method.scope != "tensor" and protection.needs_gram:
        raise MethodError(
            f"`--scope {prepared.method.scope}` looks at every tensor before any is fused, so the full Hessians of all "
            "would be held in memory",
            hint="`sculpt calibrate --full '*'` writes both sides' to files; give these by `--hessian` and `--protect`",
        )
    else:
        blocks = [iter([side]) if isinstance(side, Mapping) else iter(side or ()) for side in given]
        curvature = _paired_blocks(blocks[0], blocks[1], base_names)
    return Statistics(
        curvature=curvature,
        provenance={"target": target.provenance, "general": general.provenance},
        why_missing=target.why_missing,
    )


def _changed(prepared: Prepared) -> dict[str, str]:
    """Return the base's name of each tensor that is fused and that fine-tuning has changed: others have no delta."""
    from .hessian.changed import changed_tensors

    plan = prepared.plan
    changed = changed_tensors(plan.tuned[0], plan.base.path)
    fused = (step for step in plan.steps if step.action == "fuse")
    return {step.curvature: step.base.name for step in fused if step.base is not None and step.curvature in changed}


def _paired_blocks(
    target: Iterator[Mapping[str, Curvature]],
    general: Iterator[Mapping[str, Curvature]],
    base_names: Mapping[str, str],
) -> Iterator[dict[str, Curvature]]:
    """Yield tensors of which both sides are known, block by block; at the end those that only one side has."""
    ours: dict[str, Curvature] = {}
    theirs: dict[str, Curvature] = {}
    waiting = dict(base_names)
    for target_block, general_block in zip_longest(target, general, fillvalue={}):
        ours |= counted_together(target_block)
        theirs |= counted_together(general_block)
        ready = {name: base for name, base in waiting.items() if name in ours and base in theirs}
        yield paired(ours, theirs, ready)
        for name, base in ready.items():
            del waiting[name], ours[name]
            if base not in waiting.values():
                del theirs[base]
    yield paired(ours, theirs, waiting)


class _Progress:
    """Adds up the progress of two sides."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = {0: (0, 0), 1: (0, 0)}

    def of(self, side: int) -> Progress:
        """Return what one side reports to."""

        def report(done: int, total: int, what: str) -> None:
            self._done[side] = (done, total)
            self._progress(sum(d for d, _ in self._done.values()), sum(t for _, t in self._done.values()), what)

        return report
