"""Where the curvature of a fuse comes from: statistics made before, or models that are measured on the way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .fusion.arithmetic.curvature import UNMEASURED, Curvature, Curvatures, digest_of_curvature
from .fusion.arithmetic.general_sides import weighted_sum
from .fusion.arithmetic.two_sided import counted_together
from .fusion.checkpoint import ModelRef, Source
from .fusion.checkpoint.identity import identities, refuse_changed
from .fusion.checkpoint.output.guard import refuse_inputs
from .fusion.checkpoint.output.processes import Processes
from .fusion.errors import CurvatureError, MethodError, SculptError, Way
from .fusion.progress import Progress, silent
from .fusion.record.manifest import file_digest
from .fusion.run.calibration import FROM_DELTA, GENERAL, STATISTICS, Calibration, SampleRun
from .fusion.run.diff import changed_outputs
from .fusion.run.fuse import Needs, Prepared

if TYPE_CHECKING:
    from .fusion.arithmetic.two_sided import Protection
    from .fusion.methods import Method
    from .hessian import CalibrationOptions
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
        compare: Says of a fused folder how far each kind of the general set moved; None where the base is not
            protected, or nobody wants to know.
        notes: Where statistics came from, for people.
    """

    curvature: Mapping[str, Curvatures] | Iterator[Mapping[str, Curvatures]] | None
    provenance: dict[str, Any] | None
    why_missing: Callable[[], Mapping[str, str]]
    refuse_changed: Callable[[], None] = lambda: None
    compare: Callable[[Path], Mapping[str, Any]] | None = None
    notes: tuple[str, ...] = ()


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
        weight: Of its means, where those of several sides are added up.
        others: What the other models of the fuse are, by fingerprint.
    """

    checkpoint: Source
    place: int
    base: ModelRef | None
    wanted: frozenset[str] | None
    full: bool
    purpose: str
    weight: float = 1.0
    others: Mapping[str, str] = field(default_factory=dict)

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
    notes: tuple[str, ...] = ()


def with_found(prepared: Prepared, calibration: Calibration) -> tuple[Calibration, list[str]]:
    """Return where the curvature comes from, and what is to be said of statistics that lie beside the tuned models.

    Those that `calibrate` put there are used where neither samples nor other statistics were named.
    """
    from .hessian.store.found import find_statistics

    protection, method = prepared.settings.protection, prepared.method
    takes = method.uses_curvature or (protection is not None and protection.takes_samples)
    if not (takes and calibration.enabled) or calibration.hessian is not None:
        return calibration, []
    full = method.needs_gram or (protection is not None and protection.needs_gram)
    found = [find_statistics(model, full=full, purpose=prepared.title) for model in prepared.plan.tuned]
    whole = [one for one in found if one is not None and one.why_not is None]
    why = "samples were named" if calibration.data is not None else "other tuned models have none that fit"
    if calibration.data is None and len(whole) == len(found):
        told = [f"using the statistics in {one.file}, of {one.told}" for one in whole]
        return replace(calibration, hessian=[one.file for one in whole] if len(whole) > 1 else whole[0].file), told
    return calibration, [f"note: {one.file} is not used: {one.why_not or why}" for one in found if one is not None]


@contextmanager
def statistics(prepared: Prepared, calibration: Calibration, *, progress: Progress = silent) -> Iterator[Statistics]:
    """Give the curvature that a prepared fuse is to use: of the tuned models, and of the base where it is protected.

    Raises:
        CurvatureError: The statistics belong to another model.
    """
    protection = prepared.settings.protection
    if protection is not None and not calibration.enabled:
        raise MethodError("a protection needs statistics, so calibration cannot be off")
    if not calibration.enabled or not (protection is not None or prepared.method.uses_curvature):
        if calibration.data is not None or calibration.hessian is not None:
            raise MethodError(
                f"samples and statistics have no effect on {prepared.method.title} without a protected base",
                hint="its deltas do not depend on what a model's inputs are",
            )
        yield Statistics(curvature=None, provenance=None, why_missing=dict)
        return
    names = _names(prepared)
    before = identities(file for file in calibration.files() if file.suffix == STATISTICS)
    measured = _to_measure(prepared, calibration)
    models = _models(prepared, names, [(place, weight) for place, weight, _ in measured])
    shares = _Shares(progress, len(models))
    with ExitStack() as stack:
        found = [
            _measured(model, own, shares.of(k), stack, prepared)
            for k, (model, (_, _, own)) in enumerate(zip(models, measured, strict=True))
        ]
        yield Statistics(
            curvature=_by_output(prepared, names, models, found),
            provenance=_provenance(models, found, len(prepared.plan.tuned)),
            why_missing=found[0].why_missing,
            refuse_changed=lambda: refuse_changed(before),
            compare=None
            if protection is None or not calibration.protect_check
            else comparison(
                prepared.plan.base,
                prepared.plan.tuned,
                calibration,
                [one.provenance for model, one in zip(models, found, strict=True) if not model.place],
                progress,
            ),
            notes=tuple(note for one in found for note in one.notes),
        )


def _to_measure(prepared: Prepared, calibration: Calibration) -> list[tuple[int, float, Calibration]]:
    """Return which models are measured, by their place in a group, each with a weight and what it is measured on.

    Raises:
        SculptError: That would come to nothing.
    """
    protection = prepared.settings.protection
    refuse_inputs(prepared.output, calibration.files())
    options = calibration.of_tuned(len(prepared.plan.tuned))
    general = calibration.of_general() if protection is not None else []
    if protection is None:
        _refuse_idle_delta(options)
    else:
        _refuse_useless_target(protection, prepared.method, options, general)
    # Without samples the delta stands in for a tuned model's.
    measured = [(k, 1.0, own) for k, own in enumerate(options, start=1) if protection is None or own.has_samples]
    return measured + [(0, side.weight, own) for side, own in zip(calibration.sides, general, strict=False)]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a fuse is expected to take on a CPU, with what is measured on its way.

    Attributes:
        seconds: About.
        samples: A sentence about what each model is measured on.
    """

    needs: Needs
    seconds: float
    samples: tuple[str, ...] = ()


def expected(prepared: Prepared, calibration: Calibration) -> Expected:
    """Return what a fuse takes, by headers, a look at the samples and a trial of this machine; nothing is run.

    Raises:
        SculptError: Samples cannot be read, or would come to nothing.
    """
    from .fusion.run.bill import PROCESS_BYTES
    from .fusion.run.trial import seconds_to_fuse
    from .hessian.forecast import COMPARED, compared, forecast, samples_of, seconds_to_read, whole_model

    needs, seconds, protection = prepared.needs(), seconds_to_fuse(prepared), prepared.settings.protection
    if not calibration.enabled or not (protection is not None or prepared.method.uses_curvature):
        return Expected(needs=needs, seconds=seconds)
    models = (prepared.plan.base, *prepared.plan.tuned)
    full = prepared.method.needs_gram or (protection is not None and protection.needs_gram)
    told, held, logits, libraries, whole = [], 0, 0, 0, 0
    for place, _, own in _to_measure(prepared, calibration):
        if own.hessian is not None:
            continue
        model = models[place]
        if _is_kept(model, place, own, prepared):
            told.append(f"{model.ref} is not run: its statistics are kept from an earlier run")
            continue
        samples = samples_of(own.data, own, model)
        found = forecast(model, samples, full=full, memory=own.memory)
        told.append(f"{model.ref} is run on {samples.name}: {samples.num_rows} rows, about {samples.num_tokens} tokens")
        seconds, held, libraries = seconds + found.seconds, held + found.held, found.libraries
        logits = max(logits, found.logits)
        whole = max(whole, whole_model(model) if samples.written else 0)
    if protection is not None and calibration.protect_check and prepared.settings.emit == "checkpoint":
        whole = max(whole, compared(models[0]) + held + logits)  # beside what was run and is not let go yet
        seconds += 2 * seconds_to_read(models[0], COMPARED)
    bill = prepared.bill(prepared.backend())
    tiles = bill.expected - bill.process - bill.whole
    height = max(held + logits + tiles, bill.whole + tiles, whole)
    memory = height + max(bill.process, PROCESS_BYTES + libraries)
    return Expected(needs=replace(needs, memory=memory), seconds=seconds, samples=tuple(told))


def comparison(
    base: Source,
    tuned: Sequence[Source],
    calibration: Calibration,
    general: Sequence[Mapping[str, Any]],
    progress: Progress,
) -> Callable[[Path], Mapping[str, Any]]:
    """Return what says of a fused folder how far it moved from its base, and of one fine-tune that was measured on
    samples what is left of its gain on others of them; of what it cannot say, why not."""
    seen = [(one["seed"], dict(one["kind_samples"])) for one in general if one.get("data") == GENERAL]

    def compare(folder: Path) -> Mapping[str, Any]:
        from .drift.gain import gain_kept
        from .drift.movement import movement
        from .drift.reader import HowToRun

        how = HowToRun(**{field.name: getattr(calibration, field.name) for field in fields(HowToRun)})
        try:
            moved = movement(
                base, folder, how, chats=calibration.protect_chats, seed=calibration.seed, measured=seen,
                progress=progress,
            ).as_json()  # fmt: skip
            own = calibration.of_tuned(len(tuned))
            if len(own) > 1 or own[0].hessian is not None or not isinstance(own[0].data, (str, Path)):
                return moved
            gain = gain_kept(base, tuned[0], folder, how, own[0].data, own[0]) if own[0].has_samples else None
            return moved if gain is None else {**moved, "gain": gain.as_json()}
        except SculptError as error:  # what was fused is whole, whatever cannot be said of it
            return {"why_not": error.message}

    return compare


def _refuse_idle_delta(options: Sequence[Calibration]) -> None:
    if any(not own.has_samples and (own.data is not None or own.hessian is not None) for own in options):
        raise MethodError(
            f"`{FROM_DELTA}` can replace samples of a tuned model only if the base is protected",
            ways=[Way(option="protect", effect="protects it")],
        )


def _refuse_useless_target(
    protection: Protection, method: Method, targets: Sequence[Calibration], general: Sequence[Calibration]
) -> None:
    """Refuse statistics of the target that are missing, that nothing would use, or that are a general side's own.

    Raises:
        MethodError: The last would be no more than an interpolation at 1/(1 + λ), whatever the task is.
    """
    names_samples = Way(option="data", effect="names samples of the target task")
    by_delta = Way(option="Protection.target", value="delta", effect="lets each delta stand in for them")
    if not all(target.has_samples for target in targets):
        if protection.target == "data":
            raise MethodError(
                "the target's curvature should come from samples, and there are none", ways=[names_samples]
            )
        if method.needs_gram:
            raise MethodError(f"{method.title} needs samples of the target task", ways=[names_samples])
        if protection.source(UNMEASURED) == "delta" and not protection.needs_gram:
            raise MethodError(
                "without samples of the target task, a protection needs matrices: diagonals of a delta say nothing",
                ways=[
                    names_samples,
                    Way(option="Protection.curvature", value="full", effect="takes the deltas' matrices"),
                ],
            )
    elif not protection.takes_samples and not method.uses_curvature:
        raise MethodError(
            f"samples of the target task have no effect where `target` is {protection.target}",
            options=["Protection.target"],
        )
    for target, side in product(targets, general):
        measured = target.has_samples and target.hessian is None and side.hessian is None
        if measured and protection.takes_samples and str(target.data) == str(side.data):
            where = "the general set that ships" if side.data == GENERAL else f"`{side.data}`"
            raise MethodError(
                f"the target and the base would both be measured on {where}, so nothing would be protected",
                ways=[names_samples, by_delta],
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


def _models(
    prepared: Prepared, names: Mapping[str, tuple[str | None, ...]], places: Sequence[tuple[int, float]]
) -> list[MeasuredModel]:
    """Return the models to be measured: by their place in a group, with a weight."""
    plan, protection, method = prepared.plan, prepared.settings.protection, prepared.method
    protects = protection is not None and protection.needs_gram
    full = method.needs_gram or (protection is not None and protection.needs_gram and protection.takes_samples)
    roles = {model.fingerprint: "a tuned model" for model in plan.tuned} | {plan.base.fingerprint: "the base"}
    models = []
    for place, weight in places:
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
                weight=weight,
                others=roles,
            )
        )
    return models


def _measured(
    model: MeasuredModel, calibration: Calibration, progress: Progress, stack: ExitStack, prepared: Prepared
) -> Measured:
    if calibration.hessian is not None:
        return _measured_before(model, calibration, prepared.settings.digest)
    if (kept := _kept(model, calibration, progress, prepared)) is not None:
        return kept
    from .hessian.parallel import in_step

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


def _is_kept(source: Source, place: int, calibration: Calibration, prepared: Prepared) -> bool:
    from .hessian.kept import is_kept

    protection = prepared.settings.protection
    full = protection is not None and protection.needs_gram
    return _keeps(place, calibration, prepared) and is_kept(source, _options(calibration, full=full, base=None))


def _kept(model: MeasuredModel, calibration: Calibration, progress: Progress, prepared: Prepared) -> Measured | None:
    """Return statistics of a base on the general set that are kept for its next fine-tune; None where they are not."""
    if not _keeps(model.place, calibration, prepared):
        return None
    from .hessian.kept import kept_statistics

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
            hint=_is_of(hessian.provenance.model_fingerprint, model)
            + f"calibrate the {model.role}, or accept them with `of_other_model`",
            options=["Calibration.of_other_model"],
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
    return "" if whose is None else f"they belong to {whose}: are base and tuned swapped? If not, "


def _options(calibration: Calibration, *, full: bool, base: ModelRef | None) -> CalibrationOptions:
    from .hessian import CalibrationOptions

    return CalibrationOptions(
        data=calibration.data,  # pyright: ignore[reportArgumentType] (`of_tuned` made it one)
        kinds=calibration.protect_kinds if calibration.data == GENERAL else (),
        chats=calibration.protect_chats,
        full=("*",) if full else (),
        only_changed=base,
        **{field.name: getattr(calibration, field.name) for field in fields(SampleRun)},
    )


def _session(model: MeasuredModel, calibration: Calibration, progress: Progress, processes: Processes) -> Session:
    from .hessian.session import Session

    opened = model.checkpoint if model.checkpoint.is_lent else model.checkpoint.ref
    options = _options(calibration, full=model.full, base=model.base)
    return Session(opened, options, progress=progress, processes=processes, wanted=model.wanted)


def _provenance(models: Sequence[MeasuredModel], found: Sequence[Measured], num_tuned: int) -> dict[str, Any]:
    """Return where the statistics come from: of one model as it is, of several by their side."""
    by_place = {model.place: one.provenance for model, one in zip(models, found, strict=True)}
    targets = [by_place.get(place, {"data": FROM_DELTA}) for place in range(1, num_tuned + 1)]
    general = [
        {"weight": model.weight, **one.provenance} for model, one in zip(models, found, strict=True) if not model.place
    ]
    if not general:
        return targets[0] if num_tuned == 1 else {"target": targets}
    return {
        "target": targets[0] if num_tuned == 1 else targets,
        "general": general[0] if len(general) == 1 else general,
    }


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
    protection, scope = prepared.settings.protection, prepared.method.scope
    counted = counted_together if len(prepared.plan.tuned) > 1 or protection is not None else dict
    num_models = len(prepared.plan.tuned) + 1
    # What is added up is in memory, unlike what is mapped from a file.
    adds_up = [model.weight for model in models if not model.place] not in ([], [1.0])
    known = [counted(one.curvature) for one in found if isinstance(one.curvature, Mapping)]
    if len(known) == len(found) and not adds_up:
        return _joined(names, models, known, num_models)
    if scope != "tensor" and protection is not None and protection.needs_gram:
        raise MethodError(
            f"a `scope` of {scope} needs all tensors before it fuses any, so the full Hessians of all "
            "would be held in memory",
            hint="`sculpt calibrate --full '*'` writes both sides' to files; give one of each as statistics",
        )
    if len(known) == len(found):
        from .hessian.store.gram_store import by_block

        blocks = ({name: names[name] for name in block} for block in by_block(names))
        return (_joined(block, models, known, num_models) for block in blocks)
    parts = [iter([one.curvature]) if isinstance(one.curvature, Mapping) else one.curvature for one in found]
    return _joined_blocks(names, models, parts, num_models, counted)


def _joined(
    names: Mapping[str, tuple[str | None, ...]],
    models: Sequence[MeasuredModel],
    sides: Sequence[Mapping[str, Curvature]],
    num_models: int,
) -> dict[str, Curvatures]:
    """Return each tensor's curvature in every model; a tensor that no model has seen has no entry."""
    measured = {0, *(model.place for model in models)}
    found: dict[str, Curvatures] = {}
    grams: dict[Hashable, np.ndarray] = {}
    for name, own in names.items():
        seen: list[list[tuple[float, Curvature]]] = [[] for _ in range(num_models)]
        for model, side in zip(models, sides, strict=True):
            curvature = side.get(own[model.place] or "")
            if curvature is not None:
                seen[model.place].append((model.weight, curvature))
        curvatures = tuple(
            weighted_sum(parts, grams) if parts else None if place in measured else UNMEASURED
            for place, parts in enumerate(seen)
        )
        if any(curvature is not None for curvature in curvatures):
            found[name] = curvatures
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
        """Return what one model reports to; how much there is in all is known once each has said its part."""

        def report(done: int, total: int, what: str) -> None:
            self._done[k] = (done, total)
            totals = [t for _, t in self._done]
            self._progress(sum(d for d, _ in self._done), sum(totals) if all(totals) else 0, what)

        return report
