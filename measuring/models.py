"""Which models a fuse measures, and on what; what would come to nothing is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.rows import refuse_two_meanings
from ..fusion.arithmetic.curvature import UNMEASURED
from ..fusion.checkpoint import ModelRef, Source
from ..fusion.checkpoint.identity import digest_of_data
from ..fusion.checkpoint.output.guard import refuse_inputs
from ..fusion.errors import MethodError, Way
from ..fusion.run.calibration import FROM_DELTA, GENERAL, Calibration
from ..fusion.run.diff import changed_outputs
from ..fusion.run.prepared import Prepared

if TYPE_CHECKING:
    from ..fusion.arithmetic.two_sided import Protection
    from ..fusion.methods import Method


A_TUNED_MODEL = "a tuned model"
NAMES_SAMPLES = Way(option="data", effect="names samples of the target task")
BY_DELTA = Way(option="Protection.target", value="delta", effect="lets each delta stand in for them")


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


def to_measure(prepared: Prepared, calibration: Calibration) -> list[tuple[int, float, Calibration]]:
    """Return which models are measured, by their place in a group, each with a weight and what it is measured on.

    Raises:
        SculptError: That would come to nothing.
    """
    protection = prepared.settings.protection
    refuse_inputs(prepared.output, calibration.files())
    options = calibration.of_tuned(len(prepared.plan.tuned))
    general = calibration.of_general() if protection is not None else []
    for named in (*(own.data for own in options), *(side.source for side in calibration.sides)):
        if isinstance(named, (Path, str)):
            refuse_two_meanings(named)
    if protection is None:
        _refuse_idle_delta(options)
    else:
        _refuse_useless_target(protection, prepared.method, options, general)
    # Without samples the delta stands in for a tuned model's.
    measured = [(k, 1.0, own) for k, own in enumerate(options, start=1) if protection is None or own.has_samples]
    return measured + [(0, side.weight, own) for side, own in zip(calibration.sides, general, strict=False)]


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
    if not all(target.has_samples for target in targets):
        if protection.target == "data":
            raise MethodError(
                "the target's curvature should come from samples, and there are none", ways=[NAMES_SAMPLES]
            )
        if method.needs_gram:
            raise MethodError(f"{method.title} needs samples of the target task", ways=[NAMES_SAMPLES])
        if protection.source(UNMEASURED) == "delta" and not protection.needs_gram:
            raise MethodError(
                "without samples of the target task, a protection needs matrices: diagonals of a delta say nothing",
                ways=[
                    NAMES_SAMPLES,
                    Way(option="Protection.curvature", value="full", effect="takes the deltas' matrices"),
                ],
            )
    if any(target.has_samples for target in targets) and not protection.takes_samples and not method.uses_curvature:
        raise MethodError(
            f"samples of the target task have no effect where `target` is {protection.target}",
            options=["Protection.target"],
        )
    for target, side in product(targets, general):
        measured = target.has_samples and target.hessian is None and side.hessian is None
        if measured and protection.takes_samples and _is_same(target.data, side.data):
            raise _nothing_protected("the general set that ships" if side.data == GENERAL else f"`{side.data}`")


def _is_same(one: Any, other: Any) -> bool:
    """Return whether data are the same, by whatever names; of files, whether they hold the same."""
    if str(one) == str(other) or GENERAL in (str(one), str(other)):
        return str(one) == str(other)
    first, second = Path(one), Path(other)
    if not (first.exists() and second.exists()):
        return False
    if first.samefile(second):
        return True
    both_files = first.is_file() and second.is_file() and first.stat().st_size == second.stat().st_size
    return both_files and digest_of_data(first) == digest_of_data(second)


def refuse_same_samples(protection: Protection | None, models: Sequence[MeasuredModel], found: Sequence[str]) -> None:
    """Refuse a general side whose samples are a target's own, whichever file they or their statistics come from.

    Args:
        found: The digest of the samples of each model; empty where nobody knows.

    Raises:
        MethodError: The result would be no more than an interpolation at 1/(1 + λ), whatever the task is.
    """
    if protection is None or not protection.takes_samples:
        return
    targets = {digest for model, digest in zip(models, found, strict=True) if model.place and digest}
    for model, digest in zip(models, found, strict=True):
        if not model.place and digest in targets:
            raise _nothing_protected("the same samples")


def _nothing_protected(where: str) -> MethodError:
    return MethodError(
        f"the target and the base would both be measured on {where}, so nothing would be protected",
        ways=[NAMES_SAMPLES, BY_DELTA],
    )


def names_seen(prepared: Prepared) -> dict[str, tuple[str | None, ...]]:
    """Return the names under which each model has seen a tensor that is fused, by output name.

    Where full matrices are wanted or the base is run, only of those that fine-tuning changed: others have no delta.
    """
    plan = prepared.plan
    names = {step.name: step.curvatures for step in plan.steps if step.action == "fuse"}
    if prepared.settings.protection is None:
        return names
    changed = changed_outputs(plan)
    return {name: own for name, own in names.items() if name in changed}


def models_to_measure(
    prepared: Prepared, names: Mapping[str, tuple[str | None, ...]], places: Sequence[tuple[int, float]]
) -> list[MeasuredModel]:
    """Return the models to be measured: by their place in a group, with a weight."""
    plan, protection, method = prepared.plan, prepared.settings.protection, prepared.method
    protects = protection is not None and protection.needs_gram
    full = method.needs_gram or (protection is not None and protection.needs_gram and protection.takes_samples)
    roles = {model.fingerprint: A_TUNED_MODEL for model in plan.tuned} | {plan.base.fingerprint: "the base"}
    models = []
    for place, weight in places:
        checkpoint = (plan.base, *plan.tuned)[place]
        wanted = frozenset(own[place] for own in names.values() if own[place] is not None)
        models.append(
            MeasuredModel(
                checkpoint=checkpoint,
                place=place,
                base=plan.base.ref if place and checkpoint.base else None,
                wanted=None if protection is None else wanted,  # pyright: ignore[reportArgumentType]
                full=full if place else protects,
                purpose="two-sided curvature" if protects else method.title,
                weight=weight,
                others=roles,
            )
        )
    return models
