"""One output tensor under way: its tiles, what runs on them, and the order of that."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import xxhash

from ..arithmetic.curvature import Curvature
from ..arithmetic.passes import Map, Pass
from ..arithmetic.per_element import PerElement
from ..arithmetic.random import SEGMENT, Key, tensor_key
from ..arithmetic.sums import exact_total
from ..arithmetic.tile import RawTile, root_curvature
from ..arithmetic.two_sided import score_curvature
from ..checkpoint import Checkpoint, TensorInfo
from ..checkpoint.bytes_of import as_bytes
from ..checkpoint.output.writer import CheckpointWriter
from ..checkpoint.safetensors_file import MIN_RELEASED
from ..dtypes import DTYPES
from ..errors import MethodError, NonFiniteError
from ..methods import Method
from ..plan.plan import Plan, Step
from ..record.input_digests import InputDigests
from ..record.records import TensorRecord
from .backend import Backend
from .protector import Protector


@dataclass(frozen=True, kw_only=True)
class Span:
    """Elements `start … stop − 1` of a tensor."""

    start: int
    stop: int


def spans(start: int, stop: int, tile_elements: int, grain: int = 1) -> list[Span]:
    """Cut elements into tiles of whole grains.

    None goes on past the grain that holds a multiple of 2³² elements, where the random key changes.
    """
    size, cuts = max(1, tile_elements // grain) * grain, []
    while start < stop:
        boundary = (start // SEGMENT + 1) * SEGMENT
        end = min(start + size, stop, -(-boundary // grain) * grain)
        cuts.append(Span(start=start, stop=end))
        start = end
    return cuts


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What every tensor of a run needs."""

    plan: Plan
    method: Method
    curvature: Mapping[str, Curvature] | None
    seed: int
    backend: Backend
    writer: CheckpointWriter
    inputs: InputDigests
    keep_nonfinite: bool
    protector: Protector | None = None


def _is_nonfinite(array: np.ndarray) -> np.ndarray:
    """Return where a float array holds NaN or infinity: where all bits of the exponent are set."""
    if array.dtype.name != "bfloat16":
        return ~np.isfinite(array)
    return array.view(np.uint16) & 0x7F80 == 0x7F80


def _nonfinite(arrays: Sequence[np.ndarray]) -> np.ndarray:
    bad = _is_nonfinite(arrays[0])
    for array in arrays[1:]:
        bad = bad | _is_nonfinite(array)
    return bad


@final
class TensorTask:
    """The inputs and the output of one step."""

    def __init__(self, step: Step, context: Context) -> None:
        self.step = step
        self.context = context
        self.dtype: np.dtype = DTYPES[step.dtype].numpy  # pyright: ignore[reportAttributeAccessIssue] (the plan refused others)
        self._set_aside = False  # non-finite elements are computed apart
        size = context.backend.tile_elements
        self.method = step.method or context.method
        self.grain = 1
        if step.action == "fuse":
            self.grain = self.method.grain(self._inputs[0][1].shape, self._curvature)
        self.fused_spans = spans(0, step.num_fused, size, self.grain)
        self._prepared: tuple[Any] | None = None
        self._preparing = threading.Lock()
        self._keys: dict[int, tuple[Key, ...]] = {}
        self._seen = False  # by the digests of the input files
        self._only_tile: RawTile | None = None  # of a tensor that has one
        self.copied_spans = spans(step.num_fused, step.num_elements, size)

    @cached_property
    def _inputs(self) -> list[tuple[Checkpoint, TensorInfo]]:
        plan, step = self.context.plan, self.step
        pairs = zip((plan.base, *plan.tuned), (step.base, *step.tuned), strict=False)
        return [(checkpoint, info) for checkpoint, info in pairs if info is not None]

    @property
    def _curvature(self) -> Curvature | None:
        wanted = self.method.uses_curvature or self.context.protector is not None
        seen_as = self.step.curvatures[:2][-1]
        return self.context.curvature.get(seen_as) if wanted and self.context.curvature and seen_as else None

    @property
    def is_measured(self) -> bool:
        """Whether the tensor is fused with measured curvature, not with H = I."""
        return self.step.action == "fuse" and self._curvature is not None

    @property
    def protected(self) -> str | None:
        """How the delta is mixed by two-sided curvature, if it is."""
        protector = self.context.protector
        return protector.form(self._curvature) if protector is not None and self.step.action == "fuse" else None

    @cached_property
    def _root(self) -> PerElement | None:
        curvature = self._curvature
        if curvature is not None and self.context.protector is not None:
            curvature = score_curvature(curvature, self.context.protector.protection)
        if curvature is None or not curvature.terms or not self.method.uses_curvature:
            return None
        return root_curvature(self.step.name, curvature, self._inputs[0][1].shape)

    def _prepare(self) -> Any:
        """Return what the method makes of the tensor's curvature; made once, by the thread that comes first."""
        with self._preparing:
            if self._prepared is None:
                self._prepared = (self.method.prepare(self.step.name, self._inputs[0][1].shape, self._curvature),)
            return self._prepared[0]

    def _stored(self, span: Span) -> list[np.ndarray]:
        arrays = [checkpoint.raw(info.name, span.start, span.stop) for checkpoint, info in self._inputs]
        if not self._seen:
            for array in arrays:
                self.context.inputs.see(array)
        return arrays

    def _finite(self, span: Span) -> list[np.ndarray]:
        """Return base and tuned elements; where non-finite ones are computed apart, with 0 in their place."""
        arrays = self._stored(span)
        if not self._set_aside:
            return arrays
        bad = _nonfinite(arrays)
        return [np.where(bad, np.zeros((), array.dtype), array) for array in arrays]

    def _protected(self, span: Span, protector: Protector) -> list[np.ndarray]:
        """Return base and tuned elements, the delta mixed by two-sided curvature."""

        def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            base, tuned = self._finite(Span(start=start, stop=stop))
            return base, tuned

        name, shape = self.step.name, self._inputs[0][1].shape
        tuned = protector.tuned(name, shape, self._curvature, span.start, span.stop, read)
        return [read(span.start, span.stop)[0], tuned]

    def _tile(self, span: Span) -> RawTile:
        if self._only_tile is not None:
            return self._only_tile
        protector = self.context.protector
        arrays = self._finite(span) if protector is None else self._protected(span, protector)
        segment = span.start // SEGMENT
        keys = self._keys.get(segment)
        if keys is None:
            seed, name = self.context.seed, self.step.key
            keys = tuple(tensor_key(seed, name, segment=segment, stream=k) for k in range(len(arrays) - 1))
            self._keys[segment] = keys
        tile = RawTile(
            start=span.start,
            base=arrays[0],
            tuned=tuple(arrays[1:]),
            keys=keys,
            root=self._root,
            grain=self.grain,
            prepared=self._prepare(),
        )
        if len(self.fused_spans) == 1:
            self._only_tile = tile
        return tile

    def run(self, wanted: Pass | Map | None, span: Span) -> Any:
        """Run a pass or a map over a span, or copy it."""
        if isinstance(wanted, Pass):
            return self.context.backend.run_pass(self._tile(span), wanted)
        with self.context.writer.room(self.step.name, span.start, span.stop, self.dtype) as out:
            rows = self._copy(span, out) if wanted is None else self._map(span, wanted, out)
            digest = xxhash.xxh3_128_digest(as_bytes(out))
        if out.nbytes >= MIN_RELEASED:
            for checkpoint, info in self._inputs:
                checkpoint.release_part(info.name, span.start, min(span.stop, info.num_elements))
        return digest if wanted is None else (rows, digest)

    def _map(self, span: Span, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Fuse a span; return its figures."""
        rows = self.context.backend.run_map(self._tile(span), wanted, out)
        if self._set_aside:
            arrays = self._stored(span)
            bad = _nonfinite(arrays)
            out[bad] = arrays[min(1, len(arrays) - 1)][bad].astype(self.dtype)
        return rows

    def _copy(self, span: Span, out: np.ndarray) -> None:
        """Copy a span from its source, cast if the plan says so."""
        info = self.step.copied_from
        checkpoint = (self.context.plan.base, *self.context.plan.tuned)[self.step.origin]
        data = checkpoint.raw(info.name, span.start, span.stop)
        self.context.inputs.see(data)
        if info.stored.fusible and not self.context.keep_nonfinite:
            count = int(_nonfinite([data]).sum())
            if count:
                raise NonFiniteError(info.name, f"`{checkpoint.path}`", count)
        with np.errstate(all="ignore"):
            out[:] = data

    def note_seen(self) -> None:
        """Note that every element has been looked at once."""
        self._seen = True

    def is_sound(self, totals: np.ndarray) -> bool:
        """Return whether the figures are finite; False asks for another run, non-finite elements now set aside.

        Raises:
            NonFiniteError: An input holds NaN or infinity, and that is not allowed.
            MethodError: Finite inputs gave an overflow.
        """
        if np.isfinite(totals[3:5]).all():
            return True
        found = 0
        for checkpoint, info in self._inputs:
            count = sum(int(_nonfinite([checkpoint.raw(info.name, s.start, s.stop)]).sum()) for s in self.fused_spans)
            if count and not self.context.keep_nonfinite:
                raise NonFiniteError(info.name, f"`{checkpoint.path}`", count)
            found += count
        if found and not self._set_aside:
            self._set_aside = True
            self._let_go()
            return False
        raise MethodError(
            f"`{self.step.name}` overflows {DTYPES[self.step.dtype].torch}",
            hint="`--dtype float32` or a smaller strength keeps it in range",
        )

    def release(self) -> None:
        """Let go of the input pages and of what was prepared."""
        self._prepared = None
        self._let_go()
        for checkpoint, info in self._inputs:
            checkpoint.release(info.name)

    def _let_go(self) -> None:
        self._only_tile = None
        if self.context.protector is not None:
            self.context.protector.release(self.step.name)

    def still_written(self, digest: str) -> bool:
        """Return whether the output holds the bytes that an interrupted run noted as finished."""
        size, whole = self.dtype.itemsize, xxhash.xxh3_128()
        for span in self.fused_spans + self.copied_spans:
            data = self.context.writer.read(self.step.name, span.start * size, (span.stop - span.start) * size)
            whole.update(xxhash.xxh3_128_digest(data))
        return whole.hexdigest() == digest


Work = list[tuple[TensorTask, Span]]
Stages = Generator[tuple[Pass | Map | None, Work], list[Any], list[TensorRecord]]


def stages(unit: Sequence[TensorTask]) -> Stages:
    """Yield what is to be run and on which spans, be sent the results in that order; return the records.

    A unit is the tensors that share one reduction: one tensor, or all of a block or model. The caller decides whether
    the spans of a stage run one after the other or on many threads.
    """
    method = unit[0].method
    fused = [task for task in unit if task.fused_spans]
    digests = {task.step.name: xxhash.xxh3_128() for task in unit}
    totals: dict[str, np.ndarray] = {}
    figures: Mapping[str, float] = {}
    while fused and not totals:
        work = [(task, span) for task in fused for span in task.fused_spans]
        reduction = method.reduce(sum(task.step.num_fused for task in fused))
        wanted = _advance(reduction, None, fused[0])
        while isinstance(wanted, Pass):
            results = yield wanted, work
            for task in fused:
                task.note_seen()
            wanted = _advance(reduction, wanted.combine(results), fused[0])
        results = yield wanted, work
        rows: dict[str, list[np.ndarray]] = {task.step.name: [] for task in fused}
        for (task, _), (span_rows, _) in zip(work, results, strict=True):
            rows[task.step.name].append(span_rows)
        totals = {name: exact_total(found) for name, found in rows.items()}
        unsound = [task for task in fused if not task.is_sound(totals[task.step.name])]  # each is told, hence no all()
        if unsound:
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
    return [
        TensorRecord.of(
            t.step,
            totals.get(t.step.name),
            figures if t in fused else {},
            digests[t.step.name].hexdigest(),
            measured=t.is_measured,
            protected=t.protected,
        )
        for t in unit
    ]


def _advance(reduction: Any, value: Any, task: TensorTask) -> Pass | Map:
    try:
        return reduction.send(value)
    except StopIteration as end:
        return end.value
    except MethodError as error:
        raise MethodError(f"`{task.step.name}`: {error.message}", hint=error.hint) from error
