"""A fuse into memory: the tensors that an ordinary fuse would write, bit for bit, by the same loop.

With `RememberingBackend` a second fuse of the same pair with another strength repeats no look at the elements: what a
method's reduction asks for does not depend on its strength, so only the map runs again, at the speed of memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from ..arithmetic.curvature import Curvature
from ..arithmetic.passes import Map, Pass
from ..arithmetic.tile import RawTile
from ..dtypes import DTYPES
from ..methods import Method
from ..plan.plan import Plan
from ..plan.step import Step
from ..progress import Progress, silent
from ..record.records import TensorRecord
from .backend import Backend
from .loop import run
from .protector import Protector
from .task import Context


@final
class RememberingBackend(Backend):
    """Runs tiles on another backend, each pass over each tile once. Passes are a hundredth of the elements' size."""

    def __init__(self, backend: Backend) -> None:
        self.threads = backend.threads
        self.tile_elements = backend.tile_elements
        self.num_passes = 0
        self._backend = backend
        self._known: dict[Any, np.ndarray] = {}
        self._lock = threading.Lock()

    def run_pass(self, tile: RawTile, wanted: Pass) -> np.ndarray:
        """Return the pass's rows for a tile, from memory where they are known."""
        key = self._key(tile, wanted)
        rows = self._known.get(key) if key is not None else None
        if rows is None:
            rows = self._backend.run_pass(tile, wanted)
            with self._lock:
                self.num_passes += 1
                if key is not None:
                    self._known[key] = rows
        return rows

    def run_map(self, tile: RawTile, wanted: Map, out: np.ndarray) -> np.ndarray:
        """Fuse a tile."""
        return self._backend.run_map(tile, wanted, out)

    @staticmethod
    def _key(tile: RawTile, wanted: Pass) -> Any:
        """Return what a pass over a tile depends on while inputs and curvature stay; None where that is not known."""
        if tile.prepared is not None:
            return None
        address = tile.base.__array_interface__["data"][0]  # tells tied twins apart, which share their keys
        key = (wanted.function, wanted.arguments, tile.keys, tile.start, len(tile.base), address, tile.root is None)
        try:
            hash(key)
        except TypeError:
            return None
        return key


@final
class _Memory:
    """Takes the place of a `CheckpointWriter`."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.finished: Mapping[str, Any] = {}

    def make_room(self, step: Step) -> None:
        dtype: Any = DTYPES[step.dtype].numpy
        self.tensors[step.name] = np.empty(step.num_elements, dtype)

    @contextmanager
    def room(self, name: str, start: int, stop: int, _dtype: np.dtype) -> Iterator[np.ndarray]:
        yield self.tensors[name][start:stop]

    def finish(self, name: str, entry: Mapping[str, Any]) -> None:
        """Keep no journal."""


@final
class _NoDigests:
    """Takes the place of `InputDigests`."""

    def see(self, array: np.ndarray) -> None:
        """Hash nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedTensors:
    """What a fuse made.

    Attributes:
        tensors: By output name, in the output's dtype and shape.
        records: As the manifest would have them.
    """

    tensors: Mapping[str, np.ndarray]
    records: Mapping[str, TensorRecord]


def fuse_in_memory(
    plan: Plan,
    method: Method,
    *,
    curvature: Mapping[str, Curvature] | None,
    seed: int,
    backend: Backend,
    keep_nonfinite: bool = False,
    protector: Protector | None = None,
    progress: Progress = silent,
) -> FusedTensors:
    """Return every output tensor of a plan.

    Raises:
        SculptError: As the fuse would.
    """
    memory, digests = _Memory(), _NoDigests()
    for step in plan.steps:
        memory.make_room(step)
    context = Context(
        plan=plan,
        method=method,
        curvature=curvature,
        seed=seed,
        backend=backend,
        writer=memory,  # pyright: ignore[reportArgumentType] (what a run asks of a writer, it has)
        inputs=digests,  # pyright: ignore[reportArgumentType, reportCallIssue]
        keep_nonfinite=keep_nonfinite,
        protector=protector,
    )
    records = run(plan.steps, context, progress=progress)
    shaped = {step.name: memory.tensors[step.name].reshape(step.shape) for step in plan.steps}
    return FusedTensors(tensors=shaped, records=records)
