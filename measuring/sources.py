"""Where the curvature of a fuse comes from: statistics made before, or models that are measured on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..fusion.arithmetic.curvature import Curvatures
from ..fusion.checkpoint.identity import identities, refuse_changed
from ..fusion.errors import MethodError
from ..fusion.progress import Progress, silent
from ..fusion.record.manifest import ASKED
from ..fusion.run.calibration import FROM_DELTA, STATISTICS, Calibration
from ..fusion.run.prepared import Prepared
from .joined import by_output
from .measured import Measured, measured
from .models import MeasuredModel, models_to_measure, names_seen, refuse_same_samples, to_measure
from .moved import comparison


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


def with_found(prepared: Prepared, calibration: Calibration) -> tuple[Calibration, list[str]]:
    """Return where the curvature comes from, and what is to be said of statistics that lie beside the tuned models.

    Those that `calibrate` put there are used where neither samples nor other statistics were named.
    """
    from ..hessian.store.found import find_statistics

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
    names = names_seen(prepared)
    before = identities(file for file in calibration.files() if file.suffix == STATISTICS)
    wanted = to_measure(prepared, calibration)
    models = models_to_measure(prepared, names, [(place, weight) for place, weight, _ in wanted])
    shares = _Shares(progress, len(models))
    with ExitStack() as stack:
        found = [
            measured(model, own, shares.of(k), stack, prepared)
            for k, (model, (_, _, own)) in enumerate(zip(models, wanted, strict=True))
        ]
        refuse_same_samples(protection, models, [one.provenance.get("data_digest", "") for one in found])
        yield Statistics(
            curvature=by_output(prepared, names, models, found),
            provenance={**_provenance(models, found, len(prepared.plan.tuned)), ASKED: calibration.said()},
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
