"""A fuse into memory: the tensors that an ordinary fuse would write, bit for bit, by the same loop.

With `RememberingBackend` a second fuse of the same pair with another strength repeats no look at the elements: what a
method's reduction asks for does not depend on its strength, so only the map runs again, at the speed of memory.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from ..arithmetic.curvature import Curvatures
from ..arithmetic.passes import Map, Pass
from ..arithmetic.tile import RawTile
from ..checkpoint.output.sink import MemorySink
from ..plan.plan import Plan
from ..progress import Progress, silent
from ..record.records import TensorRecord
from .backend import Backend
from .loop import run
from .prepared import output_tensors
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
        if tile.prepared is not None or tile.name is None:
            return None
        # The name tells tied twins apart, which share their random keys.
        key = (tile.name, tile.start, len(tile.base), wanted.function, wanted.arguments, tile.keys, tile.root is None)
        try:
            hash(key)
        except TypeError:
            return None
        return key


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
    *,
    curvature: Mapping[str, Curvatures] | None,
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
    sink = MemorySink(output_tensors(plan))
    context = Context(
        plan=plan,
        curvature=curvature,
        seed=seed,
        backend=backend,
        sink=sink,
        inputs=None,
        keep_nonfinite=keep_nonfinite,
        protector=protector,
    )
    records = run(plan.steps, context, progress=progress)
    return FusedTensors(tensors=sink.tensors, records=records)
