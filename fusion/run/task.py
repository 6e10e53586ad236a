"""One output tensor under way: its elements, as the method is to see them, and what runs on them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, final

import numpy as np
import xxhash

from ..arithmetic.curvature import Curvatures
from ..arithmetic.group import Group
from ..arithmetic.matrices import Matrices
from ..arithmetic.passes import Finding, Map, Pass
from ..arithmetic.per_element import PerElement
from ..arithmetic.random import SEGMENT, Key, tensor_key
from ..arithmetic.sums import block_sums
from ..arithmetic.tile import RawTile, root_curvature
from ..arithmetic.two_sided import score_curvature
from ..checkpoint import Source, TensorInfo
from ..checkpoint.bytes_of import as_bytes
from ..checkpoint.mapped_file import MIN_RELEASED
from ..checkpoint.output.sink import Sink
from ..dtypes import DTYPES
from ..errors import MethodError, NonFiniteError
from ..launch import Launch
from ..plan.plan import Plan, Step
from ..record.input_digests import InputDigests
from .backend import Backend
from .bill import LET_IN_BYTES
from .protector import Protector
from .span import Span, spans

WHOLE_BYTES = 3  # hold whole elements of four and of six bits


@dataclass(frozen=True)
class Prepare:
    """The stage in which tensors are made whole; in place of a pass or map."""


Wanted = Pass | Map | Prepare | None  # None is a copy


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What every tensor of a run needs.

    Attributes:
        curvature: By output name, what was measured of the tensor in each model, the base first.
        whole_bytes: What tensors that are worked on whole may take together.
        launch: This process among those that share the work.
    """

    plan: Plan
    curvature: Mapping[str, Curvatures] | None
    seed: int
    backend: Backend
    sink: Sink
    inputs: InputDigests | None
    keep_nonfinite: bool
    protector: Protector | None = None
    whole_bytes: int = LET_IN_BYTES
    launch: Launch = field(default_factory=Launch)


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
        kind = DTYPES[step.dtype]
        # Elements of less than a byte have no NumPy form: they are copied by the byte.
        self.dtype: np.dtype = kind.numpy or np.dtype(np.uint8)
        self._set_aside = False  # non-finite elements are computed apart
        size = context.backend.tile_elements
        self.method = step.method or context.plan.method
        self.group = Group(
            name=step.name,
            shape=_fused_shape(step, self._inputs[0][1].shape if self._inputs else step.shape),
            curvatures=self._curvatures(),
            depth=context.plan.depth_of(step.name),
        )
        if step.action == "fuse":
            context.sink.measured(step.name, self.group.curvatures)
        protector = context.protector
        self.seen = protector.seen(self.group) if protector is not None else self.group  # what the method is told
        self.region = self.method.region(self.seen) if step.action == "fuse" else "element"
        self.grain = self.group.row_length if self.region == "row" else 1
        self.fused_spans = spans(0, step.num_fused, size, self.grain)
        self.copied_spans = (
            spans(step.num_fused, step.num_elements, size)
            if kind.numpy
            else spans(0, step.nbytes, size, grain=WHOLE_BYTES)
        )
        self._prepared: tuple[Any] | None = None
        self._preparing = threading.Lock()
        self._keys: dict[int, tuple[Key, ...]] = {}
        self._seen = False  # by the digests of the input files
        self._only_tile: RawTile | None = None  # of a tensor that has one

    @cached_property
    def _inputs(self) -> list[tuple[Source, TensorInfo]]:
        plan, step = self.context.plan, self.step
        pairs = zip((plan.base, *plan.tuned), (step.base, *step.tuned), strict=False)
        return [(checkpoint, info) for checkpoint, info in pairs if info is not None]

    def _curvatures(self) -> Curvatures:
        """Return what was measured of the tensor in each model that takes part, None where it was not."""
        infos = (self.step.base, *self.step.tuned)
        found = (self.context.curvature or {}).get(self.step.name) or (None,) * len(infos)
        return tuple(own for own, info in zip(found, infos, strict=True) if info is not None)

    @property
    def is_measured(self) -> bool:
        """Whether the tensor is fused with measured curvature, not with H = I."""
        wanted = self.method.uses_curvature or self.context.protector is not None
        return (
            wanted
            and self.step.action == "fuse"
            and any(found is not None and found.is_measured for found in self.group.curvatures)
        )

    @property
    def protected(self) -> str | None:
        """How the deltas are mixed by two-sided curvature, if they are."""
        protector = self.context.protector
        return protector.forms(self.group) if protector is not None and self.step.action == "fuse" else None

    @cached_property
    def _root(self) -> PerElement | None:
        if not self.method.uses_curvature:
            return None
        protector = self.context.protector
        curvature = score_curvature(self.seen, protector.protection) if protector is not None else self.group.target
        if curvature is None or not curvature.terms:
            return None
        return root_curvature(self.step.name, curvature, self.group.shape)

    def _prepare(self) -> Any:
        """Return what the method makes of the tensor beforehand; made once, by the thread that comes first."""
        with self._preparing:
            if self._prepared is None:
                if self.region == "matrix":
                    backend = self.context.backend
                    matrices = Matrices(self.seen, self._entering, place=backend.place, device=backend.device)
                    with np.errstate(all="ignore"):
                        self._prepared = (self.method.matrix(matrices),)
                else:
                    self._prepared = (self.method.prepare(self.seen),)
            return self._prepared[0]

    def _stored(self, span: Span) -> list[np.ndarray]:
        arrays = [checkpoint.read(info.name, span.start, span.stop) for checkpoint, info in self._inputs]
        if not self._seen and self.context.inputs is not None:
            for checkpoint, info in self._inputs:
                self.context.inputs.see(checkpoint, info.name, span.start, span.stop)
        return arrays

    def _finite(self, span: Span) -> list[np.ndarray]:
        """Return base and tuned elements; where non-finite ones are computed apart, with 0 in their place."""
        arrays = self._stored(span)
        if not self._set_aside:
            return arrays
        bad = _nonfinite(arrays)
        return [np.where(bad, np.zeros((), array.dtype), array) for array in arrays]

    def _entering(self, start: int, stop: int) -> list[np.ndarray]:
        """Return base and tuned elements as the method is to see them, the deltas mixed where the base is protected."""
        protector = self.context.protector
        arrays = self._finite(Span(start=start, stop=stop))
        if protector is None:
            return arrays
        matrices = Matrices(self.group, lambda first, last: self._finite(Span(start=first, stop=last)))
        return [arrays[0], *protector.tuned(self.group, start, stop, matrices)]

    def _tile(self, span: Span) -> RawTile:
        if self._only_tile is not None:
            return self._only_tile
        prepared = self._prepare()
        arrays = self._entering(span.start, span.stop)
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
            prepared=prepared,
            name=None if self._set_aside else self.step.name,  # other elements than the inputs have
        )
        if len(self.fused_spans) == 1:
            self._only_tile = tile
        return tile

    @property
    def finding(self) -> Finding | None:
        """What a matrix transform found, where it makes nothing."""
        made = self._prepared[0] if self._prepared else None
        return made if isinstance(made, Finding) else None

    @property
    def is_made_whole(self) -> bool:
        """Whether a matrix transform makes the tensor."""
        return self.region == "matrix"

    def run(self, wanted: Wanted, span: Span) -> Any:
        """Make the tensor whole, run a pass or a map over a span, or copy it."""
        if isinstance(wanted, Prepare):
            self._prepare()
            return None
        if isinstance(wanted, Pass):
            return self.context.backend.run_pass(self._tile(span), wanted)
        with self.context.sink.room(self.step.name, span.start, span.stop, self.dtype) as out:
            rows = self._copy(span, out) if wanted is None else self._map(span, wanted, out)
            digest = xxhash.xxh3_128_digest(as_bytes(out))
        if out.nbytes >= MIN_RELEASED:
            first, last = self._elements(span)
            for checkpoint, info in self._inputs:
                checkpoint.release(info.name, first, min(last, info.num_elements))
        return digest if wanted is None else (rows, digest)

    def _map(self, span: Span, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Fuse a span; return its figures."""
        tile = self._tile(span)
        rows = self.context.backend.run_map(tile, wanted, out)
        if not self._set_aside:
            self.context.sink.explain(self.step.name, tile, wanted)
        else:
            arrays = self._stored(span)
            bad = _nonfinite(arrays)
            out[bad] = arrays[min(1, len(arrays) - 1)][bad].astype(self.dtype)
        return rows if self.context.protector is None else _below(rows, self._own_deltas(span))

    def _own_deltas(self, span: Span) -> np.ndarray:
        """Return Σ|δ| of each block of a span, of the tuned models as they are stored."""
        base, *tuned = Matrices(self.group, lambda start, stop: self._finite(Span(start=start, stop=stop))).flat(
            span.start, span.stop
        )
        return sum(block_sums(np.abs(own - base)) for own in tuned)  # pyright: ignore[reportReturnType]

    def _copy(self, span: Span, out: np.ndarray) -> None:
        """Copy a span from its source, cast if the plan says so."""
        info = self.step.copied_from
        checkpoint = (self.context.plan.base, *self.context.plan.tuned)[self.step.origin]
        first, last = self._elements(span)
        if info.kind.numpy is not None:
            data = checkpoint.read(info.name, first, last)
        else:
            place = checkpoint.stored(info.name, first, last)
            assert place is not None  # the plan refused others
            data = checkpoint.mapped()[place[0]][place[1] : place[2]]
        if self.context.inputs is not None:
            self.context.inputs.see(checkpoint, info.name, first, last)
        if info.kind.fusible and not self.context.keep_nonfinite:
            count = int(_nonfinite([data]).sum())
            if count:
                raise NonFiniteError(info.name, f"`{checkpoint.ref}`", count)
        with np.errstate(all="ignore"):
            out[:] = data

    def _elements(self, span: Span) -> tuple[int, int]:
        """Return the first element of a span, which may have bytes, and the one after its last."""
        kind = DTYPES[self.step.dtype]
        return (span.start, span.stop) if kind.numpy else (span.start * 8 // kind.bits, span.stop * 8 // kind.bits)

    def note_seen(self) -> None:
        """Note that every element has been looked at once."""
        self._seen = True

    def refuse_nonfinite(self) -> int:
        """Return how many elements of the inputs are NaN or infinite.

        Raises:
            NonFiniteError: There are some, and that is not allowed.
        """
        found = 0
        for checkpoint, info in self._inputs:
            count = sum(int(_nonfinite([checkpoint.read(info.name, s.start, s.stop)]).sum()) for s in self.fused_spans)
            if count and not self.context.keep_nonfinite:
                raise NonFiniteError(info.name, f"`{checkpoint.ref}`", count)
            found += count
        return found

    def set_nonfinite_aside(self) -> None:
        """Have non-finite elements of the inputs computed apart in the next run; they made the figures non-finite.

        Raises:
            NonFiniteError: An input holds NaN or infinity, and that is not allowed.
            MethodError: Finite inputs gave an overflow.
        """
        if self.refuse_nonfinite() and not self._set_aside:
            self._set_aside = True
            self._let_go()
            return
        raise MethodError(
            f"`{self.step.name}` overflows {DTYPES[self.step.dtype].torch}",
            hint="a wider dtype to store, float32 say, or a smaller strength keeps it in range",
        )

    def release(self) -> None:
        """Let go of the input pages and of what was prepared."""
        self._let_go()
        for checkpoint, info in self._inputs:
            checkpoint.release(info.name)

    def _let_go(self) -> None:
        self._only_tile = self._prepared = None
        if self.context.protector is not None:
            self.context.protector.release(self.step.name)

    def still_written(self, digest: str) -> bool:
        """Return whether the output holds the bytes that an interrupted run noted as finished."""
        size, whole = self.dtype.itemsize, xxhash.xxh3_128()
        for span in self.fused_spans + self.copied_spans:
            data = self.context.sink.read(self.step.name, span.start * size, (span.stop - span.start) * size)
            whole.update(xxhash.xxh3_128_digest(data))
        return whole.hexdigest() == digest


def _below(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return figures of blocks with a row more; it may have other blocks, as only sums are taken of them."""
    width = max(rows.shape[1], len(row))
    return np.vstack([np.pad(found, ((0, 0), (0, width - found.shape[1]))) for found in (rows, row[None])])


def _fused_shape(step: Step, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of what is fused: of a vocabulary that was resized the common rows."""
    if step.action != "fuse" or step.num_fused == prod(shape):
        return shape
    return (step.num_fused // prod(shape[1:]), *shape[1:])
