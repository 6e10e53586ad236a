"""The loop: read, let the method reduce and map, write; tiles of any tensor on any thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Any, final

from ..collector import without_collector
from ..plan.plan import Step
from ..progress import Progress
from ..record.records import TensorRecord
from .bill import whole_bytes
from .share import share_of, together
from .stages import Results, stages
from .task import Context, TensorTask

BATCH = 1 << 18  # units smaller than this run whole in one task, several to a task
TINY = 1 << 15  # units smaller than this are more Python than arithmetic: threads would fight for the interpreter
THREADS_A_FILE = 4  # one hashes, as much as three others compute
Unit = list[TensorTask]


def _units(groups: Iterable[Sequence[Step]], context: Context) -> Iterator[Unit]:
    for group in groups:
        yield [TensorTask(step, context) for step in group]


def _bill(unit: Unit) -> int:
    """Return the bytes that a unit takes beyond those of its tiles, while it is under way."""
    context = unit[0].context
    protection = context.protector.protection if context.protector is not None else None
    return sum(whole_bytes(task.step, task.method, protection) for task in unit)


def _size(unit: Unit) -> int:
    return sum(task.step.num_elements for task in unit)


def _batches(all_units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Put consecutive small units together, and tiny ones; a large one comes alone.

    The order stays: it is that of the files.
    """
    batch: list[Unit] = []
    filled, tiny = 0, False
    for unit in all_units:
        size = _size(unit)
        if batch and (max(size, filled) >= BATCH or len(batch) >= 256 or tiny != (size < TINY)):
            yield batch
            batch, filled = [], 0
        if size >= BATCH:
            yield [unit]
        else:
            batch.append(unit)
            filled += size
            tiny = size < TINY
    if batch:
        yield batch


def _side_by_side(files: Sequence[Iterable[list[Unit]]], at_once: int) -> Iterator[list[Unit]]:
    """Take batches from several files in turn, about as many bytes of each; when one ends the next begins."""
    waiting = iter(files)
    rounds = max(1, -(-len(files) // at_once))
    # What was taken of a file so far, and what is left; as many in each round, lest the last be alone.
    under_way = [[0, iter(file)] for file in islice(waiting, -(-len(files) // rounds))]
    while under_way:
        file = min(under_way, key=lambda each: each[0])
        batch = next(file[1], None)
        if batch is not None:
            file[0] += sum(map(_size, batch))
            yield batch
        elif (following := next(waiting, None)) is not None:
            file[1] = iter(following)
        else:
            under_way.remove(file)


def _in_turn(steps: Iterable[Step], context: Context) -> Iterator[list[Unit]]:
    """Return what is run one after the other: in the order of the files, of which many threads go through several.

    A file is hashed in its order, by one thread at a time, which many threads together are ahead of.
    """
    groups = together(steps, context.plan.method)
    plan, at_once = context.plan, max(1, context.backend.threads // THREADS_A_FILE)
    if at_once == 1 or not all(source.mapped() for source in (plan.base, *plan.tuned)):
        return _batches(_units(groups, context))  # from elsewhere blocks come, and are kept, in the order of a file
    files: dict[str, list[Sequence[Step]]] = {}
    for group in groups:
        files.setdefault(context.sink.file_of(group[0].name), []).append(group)
    return _side_by_side([_batches(_units(own, context)) for own in files.values()], at_once)


def _run_whole(batch: list[Unit]) -> Results:
    """Run small units one after the other within one task."""
    found: Results = []
    for unit in batch:
        generator, results = stages(unit), None
        try:
            while True:
                wanted, work = generator.send(results)  # pyright: ignore[reportArgumentType]
                results = [task.run(wanted, span) for task, span in work]
        except StopIteration as end:
            found += end.value
    return found


@final
class _Spread:
    """A large unit whose spans run on all threads."""

    def __init__(self, unit: Unit, submit: Callable[..., None]) -> None:
        self._stages = stages(unit)
        self._submit = submit
        self._results: list[Any] = []
        self._missing = 0

    def advance(self) -> Results | None:
        """Submit the next stage; return the records when there is none."""
        try:
            wanted, work = self._stages.send(self._results or None)  # pyright: ignore[reportArgumentType]
        except StopIteration as end:
            return end.value
        self._results = [None] * len(work)
        self._missing = len(work)
        for index, (task, span) in enumerate(work):
            self._submit(self, index, task.run, wanted, span)
        return None

    def receive(self, index: int, result: Any) -> Results | None:
        """Take one result; go on when the stage is complete."""
        self._results[index] = result  # by place, as tiles finish in any order and sums must not depend on it
        self._missing -= 1
        return self.advance() if not self._missing else None


@final
class _Together:
    """Small units that run one after the other on one thread."""

    def __init__(self, batch: list[Unit]) -> None:
        self._batch = batch

    def run(self) -> Results:
        """Run them all."""
        return _run_whole(self._batch)

    def receive(self, _index: int, results: Results) -> Results:
        """Return what came of them."""
        return results


@without_collector()
def run(steps: Sequence[Step], context: Context, *, progress: Progress) -> dict[str, Any]:
    """Fuse or copy every step into the sink; return a record for each output tensor, or what was found of it.

    Of several processes each does its share, and returns what came of that. Tensors that the sink knows as finished,
    and whose bytes are still there, are not run again.
    """
    steps = share_of(steps, context.plan.method, context.launch)
    total = sum(step.bytes_read for step in steps)
    records = _resumed(steps, context)
    done = sum(step.bytes_read for step in steps if step.name in records)
    threads = context.backend.threads
    # Threads only compute; what came of it is taken from here by this thread alone, so that no state needs a lock.
    finished: SimpleQueue[tuple[Any, int, Future[Any]]] = SimpleQueue()
    outstanding = 0
    held: dict[Any, int] = {}  # bytes of tensors that are worked on whole, by what works on them

    def note(ready: Results) -> None:
        nonlocal done
        for step, found in ready:
            if isinstance(found, TensorRecord):
                context.sink.finish(step.name, {"record": found.as_json()})
            records[step.name] = found
            done += step.bytes_read
            progress(done, total, step.name)

    with ThreadPoolExecutor(threads) as pool:

        def submit(owner: Any, index: int, function: Callable[..., Any], *arguments: Any) -> None:
            nonlocal outstanding
            outstanding += 1
            future = pool.submit(function, *arguments)
            future.add_done_callback(lambda found: finished.put((owner, index, found)))

        def start(batch: list[Unit], nbytes: int) -> None:
            # A large tensor's tiles go to all threads; small ones share a thread, as handing one over costs more than
            # computing it; tiny ones run right here.
            if len(batch) == 1 and _size(batch[0]) >= BATCH:
                owner = _Spread(batch[0], submit)
                held[owner] = nbytes
                owner.advance()
            elif nbytes or _size(batch[0]) >= TINY:
                owner = _Together(batch)
                held[owner] = nbytes
                submit(owner, 0, owner.run)
            else:
                note(_run_whole(batch))

        started = frozenset(records)
        waiting = _in_turn((step for step in steps if step.name not in started), context)
        batch = next(waiting, None)
        try:
            while True:
                # Enough work ahead that no thread waits for this one, and no more: results are held until their turn.
                while batch is not None and outstanding < 4 * threads:
                    nbytes = max(map(_bill, batch))
                    if nbytes and sum(held.values()) + nbytes > context.whole_bytes and held:
                        break  # it is let in once others are done; alone it always fits, or the run was refused
                    start(batch, nbytes)
                    batch = next(waiting, None)
                if not outstanding:
                    break
                owner, index, future = finished.get()
                outstanding -= 1
                ready = owner.receive(index, future.result())
                if ready is not None:
                    del held[owner]
                    note(ready)
        except BaseException:
            # The sink is about to be closed or removed: no thread may still be writing into it.
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return records


def _resumed(steps: Sequence[Step], context: Context) -> dict[str, Any]:
    """Return the records of tensors that an interrupted run left whole, with all that shared their reduction."""
    records: dict[str, Any] = {}
    for group in together(steps, context.plan.method):
        entries = {step.name: context.sink.finished.get(step.name) for step in group}
        own = {name: TensorRecord.from_json(entry["record"]) for name, entry in entries.items() if entry is not None}
        if len(own) == len(group) and all(
            TensorTask(step, context).still_written(own[step.name].digest) for step in group
        ):
            records |= own
    return records
