"""What happens to a tensor, stage by stage: made whole, looked at as often as its method asks, mapped, copied."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from ..arithmetic.passes import Finding, Map, Pass
from ..arithmetic.sums import exact_total
from ..errors import MethodError
from ..plan.step import Step
from ..record.records import TensorRecord
from .span import Span
from .task import Prepare, TensorTask, Wanted

Work = list[tuple[TensorTask, Span]]
Results = list[tuple[Step, Any]]  # a step, and a `TensorRecord`, or what was found where nothing is written
Stages = Generator[tuple[Wanted, Work], list[Any], Results]

NOWHERE = Span(start=0, stop=0)
SPANS_AT_ONCE = 256  # whose rows are held until they are joined: those of a search are larger than some tiles


def stages(unit: Sequence[TensorTask]) -> Stages:
    """Yield what is to be run and on which spans, be sent the results in that order; return what came of each tensor.

    A unit is the tensors that share one reduction: one tensor, or all of a block or model. The caller decides whether
    the spans of a stage run one after the other or on many threads.
    """
    fused = [task for task in unit if task.fused_spans]
    digests = {task.step.name: xxhash.xxh3_128() for task in unit}
    totals: dict[str, np.ndarray] = {}
    figures: Mapping[str, float] = {}
    while fused and not totals:
        # Apart from the tiles, which would all wait for the thread that comes first.
        whole = [(task, NOWHERE) for task in fused if task.is_made_whole]
        if whole:
            yield Prepare(), whole
        found = fused[0].finding
        wanted = (yield from _reduced(fused)) if found is None else found
        if isinstance(wanted, Finding):
            if not wanted.is_finite:
                fused[0].refuse_nonfinite()
            for task in unit:
                task.release()
            return [(task.step, wanted.value) for task in fused]
        work = [(task, span) for task in fused for span in task.fused_spans]
        results = yield wanted, work
        rows: dict[str, list[np.ndarray]] = {task.step.name: [] for task in fused}
        for (task, _), (span_rows, _) in zip(work, results, strict=True):
            rows[task.step.name].append(span_rows)
        totals = {name: exact_total(found) for name, found in rows.items()}
        unsound = [task for task in fused if not np.isfinite(totals[task.step.name][3:5]).all()]
        if unsound:
            for task in unsound:
                task.set_nonfinite_aside()
            totals = {}
            continue
        figures = wanted.figures
        for (task, _), (_, digest) in zip(work, results, strict=True):
            digests[task.step.name].update(digest)
    work = [(task, span) for task in unit for span in task.copied_spans]
    if work:
        for (task, _), digest in zip(work, (yield None, work), strict=True):
            digests[task.step.name].update(digest)
    for task in unit:
        task.release()
    return [(task.step, _record(task, totals, figures, digests)) for task in unit]


def _record(
    task: TensorTask, totals: Mapping[str, np.ndarray], figures: Mapping[str, float], digests: Mapping[str, Any]
) -> TensorRecord:
    name = task.step.name
    return TensorRecord.of(
        task.step,
        totals.get(name),
        figures if task.fused_spans else {},
        digests[name].hexdigest(),
        measured=task.is_measured,
        protected=task.protected,
    )


def _reduced(fused: Sequence[TensorTask]) -> Generator[tuple[Wanted, Work], list[Any], Map | Finding]:
    """Run the passes that a method asks for; return its map, or what it found."""
    reduction = fused[0].method.reduce(sum(task.step.num_fused for task in fused))
    wanted = _advance(reduction, None, fused[0])
    while isinstance(wanted, Pass):
        work = [(task, span) for task in fused for span in task.fused_spans[: 1 if wanted.first_only else None]]
        parts: list[np.ndarray] = []
        for first in range(0, len(work), SPANS_AT_ONCE):
            results = yield wanted, work[first : first + SPANS_AT_ONCE]
            parts += results if len(work) <= SPANS_AT_ONCE else [wanted.join(results)]
        if not wanted.first_only:
            for task in fused:
                task.note_seen()
        wanted = _advance(reduction, wanted.combine(parts), fused[0])
    return wanted


def _advance(reduction: Any, value: Any, task: TensorTask) -> Pass | Map | Finding:
    try:
        return reduction.send(value)
    except StopIteration as end:
        return end.value
    except MethodError as error:
        raise MethodError(
            f"`{task.step.name}`: {error.message}", hint=error.hint, ways=error.ways, options=error.options
        ) from error
