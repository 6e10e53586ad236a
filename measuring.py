"""Where the curvature of a fuse comes from: statistics made before, or models that are measured on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .fusion.arithmetic.curvature import Curvature, Curvatures, digest_of_curvature
from .fusion.arithmetic.two_sided import counted_together
from .fusion.checkpoint import ModelRef, Source
from .fusion.checkpoint.identity import identities, refuse_changed
from .fusion.checkpoint.output.guard import refuse_inputs
from .fusion.errors import CurvatureError, MethodError, Way
from .fusion.progress import Progress, silent
from .fusion.record.manifest import file_digest
from .fusion.run.calibration import STATISTICS, Calibration, SampleRun
from .fusion.run.diff import changed_outputs
from .fusion.run.fuse import Prepared

if TYPE_CHECKING:
    from .hessian.session import Session


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The curvature that a fuse uses.

    Attributes:
        curvature: By output name, of each model, the base first; or block by block, as it is being measured; or None
            for H = I.
        provenance: Where it comes from, for the manifest.
        why_missing: Gives, after the fuse, the reason why a tensor of the first tuned model has none.
        refuse_changed: Raises CheckpointError where a file of statistics has changed since it was opened.
    """

    curvature: Mapping[str, Curvatures] | Iterator[Mapping[str, Curvatures]] | None
    provenance: dict[str, Any] | None
    why_missing: Callable[[], Mapping[str, str]]
    refuse_changed: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A model whose statistics are wanted.

    Attributes:
        checkpoint: The model.
        place: Its place in a group: 0 for the base.
        base: What an adapter is of.
        wanted: Names of the tensors to measure, or None for all.
        full: Whether Σ x·xᵀ is wanted, not the diagonal alone.
        purpose: What wants it.
    """

    checkpoint: Source
    place: int
    base: ModelRef | None
    wanted: frozenset[str] | None
    full: bool
    purpose: str

    @property
    def role(self) -> str:
        """For messages."""
        return "tuned model" if self.place else "base"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Statistics of one model.

    Attributes:
        curvature: By its own tensors' names; or block by block, as it is being measured.
    """

    curvature: Mapping[str, Curvature] | Iterator[Mapping[str, Curvature]]
    provenance: dict[str, Any]
    why_missing: Callable[[], Mapping[str, str]]


@contextmanager
def statistics(prepared: Prepared, calibration: Calibration, *, progress: Progress = silent) -> Iterator[Statistics]:
    """Give the curvature that a prepared fuse is to use: of the tuned models, and of the base where it is protected.

    Raises:
        CurvatureError: The statistics belong to another model.
    """
    protects = prepared.settings.protection is not None
    if protects and not calibration.enabled:
        raise MethodError("a protection wants statistics, so a fuse without calibration has no place for it")
    if not calibration.enabled or not (protects or prepared.method.uses_curvature):
        yield Statistics(curvature=None, provenance=None, why_missing=dict)
        return
    names = _names(prepared)
    refuse_inputs(prepared.output, calibration.files())
    before = identities(file for file in calibration.files() if file.suffix == STATISTICS)
    models = _models(prepared, names)
    options = calibration.of_tuned(len(prepared.plan.tuned))
    if protects:
        options.append(calibration.of_general())
        _refuse_same_samples(options)
    shares = _Shares(progress, len(models))
    with ExitStack() as stack:
        found = [
            _measured(model, own, shares.of(k), stack, prepared.settings.digest)
            for k, (model, own) in enumerate(zip(models, options, strict=True))
        ]
        yield Statistics(
            curvature=_by_output(prepared, names, models, found),
            provenance=_provenance(found, len(prepared.plan.tuned)),
            why_missing=found[0].why_missing,
            refuse_changed=lambda: refuse_changed(before),
        )


def _refuse_same_samples(options: Sequence[Calibration]) -> None:
    """Refuse a target that is measured on the general samples: both curvatures are then alike, whatever the task is.

    Raises:
        MethodError: The protection would be no more than an interpolation at 1/(1 + λ).
    """
    *targets, general = options
    for target in targets:
        measured = target.hessian is None and general.hessian is None
        if measured and str(target.data) == str(general.data):
            where = "the text that ships" if general.data is None else f"`{general.data}`"
            raise MethodError(
                f"the target and the base would both be measured on {where}, which protects nothing in particular",
                ways=[Way(option="data", effect="names samples of the target task")],
            )


def _names(prepared: Prepared) -> dict[str, tuple[str | None, ...]]:
    """Return the names under which each model has seen a tensor that is fused, by output name.

    Where full matrices are wanted or the base is run, only of those that fine-tuning changed: others have no delta.
    """
    plan = prepared.plan
    names = {step.name: step.curvatures for step in plan.steps if step.action == "fuse"}
    if prepared.settings.protection is None:
        return names
    changed = changed_outputs(plan)
    return {name: own for name, own in names.items() if name in changed}


def _models(prepared: Prepared, names: Mapping[str, tuple[str | None, ...]]) -> list[MeasuredModel]:
    """Return the models to be measured: the tuned ones, then the base where it is protected."""
    plan, protection, method = prepared.plan, prepared.settings.protection, prepared.method
    protects = protection is not None and protection.needs_gram
    full = method.needs_gram or protects
    places = [*range(1, len(plan.tuned) + 1), *([0] if protection is not None else [])]
    models = []
    for place in places:
        checkpoint = (plan.base, *plan.tuned)[place]
        wanted = frozenset(own[place] for own in names.values() if own[place] is not None)
        models.append(
            MeasuredModel(
                checkpoint=checkpoint,
                place=place,
                base=plan.base.ref if checkpoint.base else None,
                wanted=None if protection is None else wanted,  # pyright: ignore[reportArgumentType]
                full=full if place else protects,
                purpose="two-sided curvature" if protects else method.title,
            )
        )
    return models


def _measured(
    model: MeasuredModel, calibration: Calibration, progress: Progress, stack: ExitStack, digest: str
) -> Measured:
    if calibration.hessian is not None:
        return _measured_before(model, calibration, digest)
    session = stack.enter_context(_session(model, calibration, progress))
    seen: dict[str, None] = {}

    def blocks() -> Iterator[Mapping[str, Curvature]]:
        for block in session.blocks():
            seen.update(dict.fromkeys(block))
            yield block

    return Measured(
        curvature=blocks(),
        provenance=asdict(session.provenance()),
        why_missing=lambda: session.collector.why_missing(seen),
    )


def _measured_before(model: MeasuredModel, calibration: Calibration, algorithm: str) -> Measured:
    """Return statistics that were measured before; the provenance has a digest of all that they say."""
    from .hessian.store.diagonal import DiagonalHessian

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
            hint=f"calibrate the {model.role}, or accept them with `of_other_model`",
            options=["Calibration.of_other_model"],
        )
    if model.full and all(found.gram is None for found in hessian.values()):
        raise CurvatureError(
            f"{model.purpose} needs full Hessians, and the statistics of the {model.role} hold their diagonals alone",
            hint="`sculpt calibrate --full '*'` measures them",
        )
    return Measured(
        curvature=hessian, provenance={**asdict(hessian.provenance), **digest}, why_missing=lambda: hessian.why_missing
    )


def _session(model: MeasuredModel, calibration: Calibration, progress: Progress) -> Session:
    from .hessian import CalibrationOptions
    from .hessian.session import Session

    options = CalibrationOptions(
        data=calibration.data,  # pyright: ignore[reportArgumentType] (`of_tuned` made it one)
        full=("*",) if model.full else (),
        only_changed=model.base,
        **{field.name: getattr(calibration, field.name) for field in fields(SampleRun)},
    )
    return Session(model.checkpoint.ref, options, progress=progress, wanted=model.wanted)


def _provenance(found: Sequence[Measured], num_tuned: int) -> dict[str, Any]:
    """Return where the statistics come from: of one model as it is, of several by their side."""
    if len(found) == 1:
        return found[0].provenance
    targets = [one.provenance for one in found[:num_tuned]]
    general = {"general": found[num_tuned].provenance} if len(found) > num_tuned else {}
    return {"target": targets[0] if num_tuned == 1 else targets, **general}


def _by_output(
    prepared: Prepared,
    names: Mapping[str, tuple[str | None, ...]],
    models: Sequence[MeasuredModel],
    found: Sequence[Measured],
) -> Any:
    """Return the statistics of all models by output name: at once where they are known, else block by block.

    Raises:
        MethodError: Every tensor is looked at before any is fused, with matrices that would all be in memory.
    """
    counted = counted_together if len(found) > 1 else dict
    if all(isinstance(one.curvature, Mapping) for one in found):
        sides = [counted(one.curvature) for one in found if isinstance(one.curvature, Mapping)]
        return _joined(names, models, sides, len(prepared.plan.tuned) + 1)
    protection, scope = prepared.settings.protection, prepared.method.scope
    if scope != "tensor" and protection is not None and protection.needs_gram:
        raise MethodError(
            f"a `scope` of {scope} looks at every tensor before any is fused, so the full Hessians of all "
            "would be held in memory",
            hint="`sculpt calibrate --full '*'` writes both sides' to files; give these as statistics",
        )
    blocks = [iter([one.curvature]) if isinstance(one.curvature, Mapping) else one.curvature for one in found]
    return _joined_blocks(names, models, blocks, len(prepared.plan.tuned) + 1, counted)


def _joined(
    names: Mapping[str, tuple[str | None, ...]],
    models: Sequence[MeasuredModel],
    sides: Sequence[Mapping[str, Curvature]],
    num_models: int,
) -> dict[str, Curvatures]:
    """Return each tensor's curvature in every model; a tensor that no model has seen has no entry."""
    found: dict[str, Curvatures] = {}
    for name, own in names.items():
        curvatures: list[Curvature | None] = [None] * num_models
        for model, side in zip(models, sides, strict=True):
            curvatures[model.place] = side.get(own[model.place] or "")
        if any(curvature is not None for curvature in curvatures):
            found[name] = tuple(curvatures)
    return found


def _joined_blocks(
    names: Mapping[str, tuple[str | None, ...]],
    models: Sequence[MeasuredModel],
    blocks: Sequence[Iterator[Mapping[str, Curvature]]],
    num_models: int,
    counted: Callable[[Mapping[str, Curvature]], Mapping[str, Curvature]],
) -> Iterator[dict[str, Curvatures]]:
    """Yield tensors that every model has seen, block by block; at the end those that only some have."""
    sides: list[dict[str, Curvature]] = [{} for _ in models]
    waiting = dict(names)
    for found in zip_longest(*blocks, fillvalue={}):
        for side, block in zip(sides, found, strict=True):
            side.update(counted(block))
        ready = {
            name: own
            for name, own in waiting.items()
            if all(own[model.place] in side for model, side in zip(models, sides, strict=True))
        }
        yield _joined(ready, models, sides, num_models)
        for name in ready:
            del waiting[name]
        for model, side in zip(models, sides, strict=True):
            still = {own[model.place] for own in waiting.values()}
            for name in [name for name in side if name not in still]:
                del side[name]
    yield _joined(waiting, models, sides, num_models)


class _Shares:
    """Adds up the progress of several models."""

    def __init__(self, progress: Progress, num_models: int) -> None:
        self._progress = progress
        self._done = [(0, 0)] * num_models

    def of(self, k: int) -> Progress:
        """Return what one model reports to."""

        def report(done: int, total: int, what: str) -> None:
            self._done[k] = (done, total)
            self._progress(sum(d for d, _ in self._done), sum(t for _, t in self._done), what)

        return report
