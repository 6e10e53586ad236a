"""The block-by-block forward: every batch passes a block before the next block is loaded.

Each batch's ordinary `model.forward` runs as a coroutine. A hook before a unit's forward parks it until the unit's
weights are there; the scheduler loads the unit that comes first in the model among those waited for, lets every batch
that waits for it go on until it parks again, and lets go of the weights. So a weight is read once, memory is one unit
plus what the batches hold between units, and nothing needs to be known of the architecture: loops, encoders with
decoders, towers, and experts that only some batches reach just work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import greenlet
import torch

from ..fusion.errors import ModelError, SculptError
from .activations import Activations
from .batching import Batch
from .recorder import Recorder, Stop
from .row_weights import RowWeights
from .units import Unit
from .weights import Weights


@dataclass(eq=False)
class _Run:
    """One batch on its way through the model."""

    index: int
    batch: Batch
    rows: RowWeights
    coroutine: greenlet.greenlet | None = None
    waits_for: Unit | None = None
    done: bool = False


class Forward:
    """Runs batches through a model in step.

    Attributes:
        passed: Indices of units that all batches have passed.
        before: Called with each unit before batches pass it.
    """

    def __init__(
        self,
        model: Any,
        units: Sequence[Unit],
        weights: Weights,
        recorder: Recorder,
        activations: Activations,
        device: torch.device,
    ) -> None:
        self.model = model
        self.units = units
        self.weights = weights
        self.recorder = recorder
        self.activations = activations
        self.device = device
        self.passed: set[int] = set()
        self.before: Callable[[Unit], None] = lambda _: None
        self._loaded: Unit | None = None
        self._running: _Run | None = None
        self._main: greenlet.greenlet | None = None

    def run(self, batches: Sequence[Batch]) -> Iterator[Unit]:
        """Yield each unit once all batches have passed it and its weights are gone.

        Raises:
            ModelError: The model fails on a batch.
        """
        runs = [_Run(k, batch, RowWeights(batch.masks, batch.num_samples)) for k, batch in enumerate(batches)]
        hooks = self._add_hooks()
        try:
            self.weights.load_rest(self.units)
            for run in runs:
                self._go_on(run)
            while waiting := [run for run in runs if run.waits_for is not None and not run.done]:
                unit = min((run.waits_for for run in waiting if run.waits_for), key=lambda unit: unit.index)
                self.weights.load(unit.parameters)
                self._loaded = unit
                self.before(unit)
                while ready := [run for run in waiting if run.waits_for is unit and not run.done]:
                    for run in ready:
                        self._go_on(run)
                self._loaded = None
                self.weights.finish(unit)
                self.passed.add(unit.index)
                yield unit
        finally:
            for hook in hooks:
                hook.remove()
            self._stop(runs)

    def _add_hooks(self) -> list[Any]:
        hooks = []
        for unit in self.units:
            for module in unit.module.modules():

                def arrive(_module: Any, _args: Any, unit: Unit = unit) -> None:
                    self._arrive(unit)

                hooks.append(module.register_forward_pre_hook(arrive, prepend=True))
        return hooks

    def _arrive(self, unit: Unit) -> None:
        if self._loaded is unit or self._running is None or greenlet.getcurrent() is self._main:
            return
        if self.weights.is_loaded(unit.parameters):  # pinned or used by all: nothing to wait for
            return
        self._running.waits_for = unit
        assert self._main is not None
        self._main.switch()

    def _go_on(self, run: _Run) -> None:
        """Let a batch run until it parks or ends."""
        run.waits_for = None
        self._main = greenlet.getcurrent()
        self._running = run
        self.recorder.rows = run.rows
        self.activations.resume(run.index)
        if run.coroutine is None:
            run.coroutine = greenlet.greenlet(self._whole_forward, self._main)
        run.coroutine.parent = self._main
        try:
            with self.recorder, torch.no_grad():
                run.coroutine.switch(run)
        finally:
            self._running = None
            self.recorder.forget_inputs()
        run.done = run.coroutine.dead
        if run.done:
            run.coroutine = None
            run.batch = run.batch.without_inputs()
            self.activations.drop(run.index)
        else:
            self.activations.park(run.index)

    def _whole_forward(self, run: _Run) -> None:
        try:
            self.model(**run.batch.inputs_on(self.device))
        except Stop:
            pass
        except (SculptError, greenlet.GreenletExit):
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"`{type(self.model).__name__}` fails on {run.batch.what}: {lines[0].rstrip('.')}"
            ) from error

    def _stop(self, runs: Sequence[_Run]) -> None:
        """End the forwards that are parked."""
        self._main = greenlet.getcurrent()
        for run in runs:
            if run.coroutine is not None and not run.coroutine.dead:
                run.coroutine.parent = self._main
                with contextlib.suppress(greenlet.GreenletExit), torch.no_grad():
                    run.coroutine.throw(greenlet.GreenletExit)
            run.coroutine = None
            self.activations.drop(run.index)
