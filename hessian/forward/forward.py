"""The block-by-block forward: every batch passes a block before the next block is loaded.

Each batch's ordinary `model.forward` runs as a coroutine. It parks before a unit until the unit's weights are there;
the scheduler loads the unit that comes first in the model among those waited for, lets every batch that waits for it
go on until it parks again, and lets go of the weights. So a weight is read once, memory is one unit plus what the
batches hold between units, and nothing needs to be known of the architecture: loops, encoders with decoders, towers,
and experts that only some batches reach just work.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import greenlet
import torch

from ...data.batching import Batch
from ...data.rows import SHIPPED
from ...fusion.errors import ModelError, SculptError, first_line
from ...live.units import Unit
from ..measure.recorder import Recorder, Stop, run_alone
from ..measure.row_weights import RowWeights
from ..measure.statistics import ReturnError
from ..store.gram_store import LostError
from .activations import Activations
from .journal import Journal
from .tape import UNIT, Tape
from .weights import Weights


@dataclass(eq=False)
class _Run:
    """One batch on its way through the model.

    Attributes:
        tape: What it did between units, where the run is to be resumable.
        output: What the model gave, where anybody wants to know.
    """

    index: int
    batch: Batch
    rows: RowWeights
    coroutine: greenlet.greenlet | None = None
    waits_for: Unit | None = None
    done: bool = False
    tape: Tape | None = None
    output: Any = None


class Forward:
    """Runs batches through a model in step.

    Attributes:
        passed: Indices of units that all batches have passed.
        is_kept: What batches hold is in the journal, so that a state can be written.
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
        dtype: torch.dtype,
        journal: Journal | None = None,
    ) -> None:
        self.model = model
        self.units = units
        self.weights = weights
        self.recorder = recorder
        self.activations = activations
        self.device = device
        self.dtype = dtype
        self.journal = journal
        self.passed: set[int] = set()
        self.is_kept = False
        self.before: Callable[[Unit], None] = lambda _: None
        self._runs: list[_Run] = []
        self._loaded: Unit | None = None
        self._running: _Run | None = None
        self._main: greenlet.greenlet | None = None
        self._keeps_outputs = False

    def run(self, batches: Sequence[Batch], tapes: Mapping[int, Tape] | None = None) -> Iterator[Unit]:
        """Yield each unit once all batches have passed it and its weights are gone.

        Args:
            tapes: Of a run that was killed: what brings each batch back that had not ended.

        Raises:
            ModelError: The model fails on a batch.
            LostError: A batch could not be brought back.
        """
        for step in self._steps(batches, tapes):
            if isinstance(step, Unit):
                yield step

    def outputs(self, batches: Sequence[Batch]) -> Iterator[Any]:
        """Yield what the model gives for each batch, in their order, each as soon as it and those before it are there.

        Raises:
            ModelError: The model fails on a batch.
        """
        self._keeps_outputs = True
        early: dict[int, Any] = {}
        due = 0
        for step in self._steps(batches):
            if isinstance(step, _Run):
                early[step.index], step.output = step.output, None
            while due in early:
                yield early.pop(due)
                due += 1

    @property
    def running(self) -> int | None:
        """The number of the batch that runs; None between them."""
        return None if self._running is None else self._running.index

    def _steps(self, batches: Sequence[Batch], tapes: Mapping[int, Tape] | None = None) -> Iterator[Unit | _Run]:
        """Yield each batch as it ends, and each unit once all batches have passed it and its weights are gone."""
        self._runs = self._make_runs(batches, tapes)
        self._wrap_modules()
        try:
            self.weights.load_rest(self.units)
            for run in self._runs:
                if not run.done:
                    yield from self._go_on(run)
            while waiting := [run for run in self._runs if run.waits_for is not None and not run.done]:
                unit = min((run.waits_for for run in waiting if run.waits_for), key=lambda unit: unit.index)
                yield from self._pass(unit, waiting)
                yield unit
        finally:
            self._unwrap_modules()
            self._stop()
            self.weights.close()

    def comes_back(self) -> bool:
        """Return whether a batch waits for a unit that it has passed: the model loops."""
        waited = {run.waits_for.index for run in self._runs if run.waits_for is not None and not run.done}
        return bool(waited & self.passed)

    def tapes(self) -> dict[int, Tape]:
        """Return the tapes of batches that have not ended."""
        return {run.index: run.tape for run in self._runs if run.tape is not None and not run.done}

    def _make_runs(self, batches: Sequence[Batch], tapes: Mapping[int, Tape] | None) -> list[_Run]:
        runs = []
        for index, batch in enumerate(batches):
            masks = [mask.to(self.device) for mask in batch.masks]
            run = _Run(index, batch, RowWeights(masks, batch.num_samples))
            if tapes is not None:
                run.tape = tapes.get(index)
                run.done = run.tape is None
            elif self.journal is not None:
                run.tape = Tape()
            runs.append(run)
        return runs

    def _pass(self, unit: Unit, waiting: Sequence[_Run]) -> Iterator[_Run]:
        """Load a unit, let every batch that waits for it go on, let go of it; yield those that end."""
        self.is_kept = self.journal is not None and self.journal.is_due()
        self.weights.load(unit.parameters)
        self._loaded = unit
        self.before(unit)
        following = self.units[unit.index + 1] if unit.index + 1 < len(self.units) else unit
        if following.index not in self.passed and following is not unit:
            self.weights.ask(following.parameters)
        gone_on: set[int] = set()
        while ready := [run for run in waiting if run.waits_for is unit and not run.done]:
            for run in ready:
                gone_on.add(run.index)
                yield from self._go_on(run)
        self._loaded = None
        self.weights.finish(unit)
        self.passed.add(unit.index)
        for run in self._runs if self.is_kept else ():
            if run.index not in gone_on and not run.done:
                self.activations.resume(run.index)  # it may have been spilled since it was parked
                self._park(run)

    def _wrap_modules(self) -> None:
        for unit in self.units:
            for leaf, module in unit.module.named_modules():
                self._wrap(module, f"{unit.name}.{leaf}" if leaf else unit.name, unit)

    def _unwrap_modules(self) -> None:
        for unit in self.units:
            for module in unit.module.modules():
                module.__dict__.pop("forward", None)

    def _wrap(self, module: Any, name: str, unit: Unit) -> None:
        """Let a module's forward wait for its unit, or give what it gave before a kill."""
        if "forward" in module.__dict__:
            return
        inner = module.forward
        own = [f"{name}.{leaf}" for leaf, _ in module.named_parameters(remove_duplicate=False)]

        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            run = self._running
            if run is None:
                return inner(*args, **kwargs)
            tape = run.tape
            if tape is not None and tape.replaying:
                output = tape.next(UNIT)
                self.recorder.follow((args, kwargs), output)
                return output
            self._arrive(run, unit, own)
            if tape is None:
                return inner(*args, **kwargs)
            tape.inside += 1
            try:
                output = inner(*args, **kwargs)
            finally:
                tape.inside -= 1
            if not tape.inside:
                tape.gave(UNIT, output)
            return output

        module.forward = forward

    def _arrive(self, run: _Run, unit: Unit, needed: Sequence[str]) -> None:
        """Park until the unit is loaded, if any of the parameters needed is not.

        A module may be part of several units, such as an activation without parameters that layers share.
        """
        if self._loaded is unit or self.weights.is_loaded(needed):
            return
        if run.tape is not None and run.tape.inside:
            run.tape.unsupported = True  # one unit within another: what it had done there is not on the tape
        run.waits_for = unit
        assert self._main is not None
        self._main.switch()

    def _go_on(self, run: _Run) -> Iterator[_Run]:
        """Let a batch run until it parks or ends; yield it if it ends."""
        run.waits_for = None
        self._main = greenlet.getcurrent()
        self._running = run
        self.recorder.rows = run.rows
        self.recorder.around = run_alone if run.tape is None else run.tape.operation
        self.activations.resume(run.index)
        if run.coroutine is None:
            run.coroutine = greenlet.greenlet(self._whole_forward, self._main)
        run.coroutine.parent = self._main
        try:
            with self.recorder, torch.no_grad():
                run.coroutine.switch(run)
        finally:
            self._running = None
            self.recorder.around = run_alone
            self.recorder.forget_inputs()
        run.done = run.coroutine.dead
        if run.done:
            self._end(run)
            yield run
        else:
            self._park(run)

    def _park(self, run: _Run) -> None:
        """Count what a waiting batch holds, which may be spilled; where a state is due, keep it first."""
        if self.is_kept and self.journal is not None and run.tape is not None:
            self.journal.keep(run.index, run.tape)
        self.activations.park(run.index)

    def _end(self, run: _Run) -> None:
        run.coroutine = None
        run.tape = None
        run.batch = run.batch.without_inputs()
        self.activations.drop(run.index)

    def _whole_forward(self, run: _Run) -> None:
        try:
            inputs = run.batch.inputs_on(self.device, self.dtype)
            self.recorder.note_samples(inputs)
            output = self.model(**inputs)
            if self._keeps_outputs:
                run.output = output
        except Stop:
            pass
        except (SculptError, LostError, ReturnError, greenlet.GreenletExit):
            raise
        except Exception as error:
            shipped = f"of `{SHIPPED}`" in run.batch.what
            raise ModelError(
                f"`{type(self.model).__name__}` fails on {run.batch.what}: {first_line(error)}",
                hint="the text that ships is for models that run on text alone; name samples of your own"
                if shipped
                else None,
                options=["data"],
            ) from error

    def _stop(self) -> None:
        """End the forwards that are parked."""
        self._main = greenlet.getcurrent()
        for run in self._runs:
            if run.coroutine is not None and not run.coroutine.dead:
                run.coroutine.parent = self._main
                with contextlib.suppress(greenlet.GreenletExit), torch.no_grad():
                    run.coroutine.throw(greenlet.GreenletExit)
            self._end(run)
