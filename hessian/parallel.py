"""Several processes, as a launcher starts them: each runs its share of the samples, and sums are added up.

What is small is told to every process; sums and matrices go through torch as they are, a piece at a time. The result is
that of one process with as many threads, but for the order of additions; the number of threads moves the float32
forward itself in its last bits.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, TypeVar

import numpy as np

from ..fusion.arithmetic.curvature import Curvature
from ..fusion.checkpoint.output.processes import Processes
from ..fusion.errors import LostProcessError, ModelError
from .store.gram_store import by_block

T = TypeVar("T")
PIECE = 1 << 22  # float64 numbers of a matrix that are added up at once


def connect(processes: Processes) -> None:
    """Connect this process to the others, by the address that their launcher gave or through their folder.

    Raises:
        ModelError: They cannot be reached.
    """
    import torch.distributed as dist

    if not processes.are_several or dist.is_initialized():
        return
    try:
        if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
            dist.init_process_group("gloo", rank=processes.rank, world_size=processes.count)
        else:
            store = _meet(processes)
            dist.init_process_group("gloo", store=store, rank=processes.rank, world_size=processes.count)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"the {processes.count} processes cannot be connected: {error}") from error
    processes.closing.append(dist.destroy_process_group)


def _meet(processes: Processes) -> Any:
    """Return a store at the first process, whose address the others read in the folder of all."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    if processes.folder is None:
        raise ModelError(
            f"{processes.count} processes need an output, or the address of the first process",
            hint="`MASTER_ADDR` and `MASTER_PORT` in the environment name it",
        )
    host, store = socket.gethostname(), None
    if processes.is_first:
        store = TCPStore(host, 0, processes.count, is_master=True, wait_for_workers=False)
    places = processes.gather("address", [host, store.port if store is not None else 0])
    first, port = places[0]
    return store or TCPStore(first, port, processes.count, is_master=False)


@contextmanager
def _told(processes: Processes) -> Iterator[None]:
    """Tell the end of a connection as what it means: another process has failed or ended."""
    try:
        yield
    except RuntimeError as error:
        processes.check(now=True)
        raise LostProcessError(
            "another process ended before its work was done",
            hint="run the same command again, with any number of processes, to go on",
        ) from error


def _all(value: T, processes: Processes) -> list[T]:
    """Return what each process has, which must be small."""
    import torch.distributed as dist

    found: list[Any] = [None] * processes.count
    with _told(processes):
        dist.all_gather_object(found, value, group=_group())
    return found


def _add(numbers: Any, processes: Processes) -> None:
    """Add up a tensor over all processes, in place."""
    import torch.distributed as dist

    with _told(processes):
        dist.all_reduce(numbers, group=_group())


_groups: dict[int, Any] = {}


def _group() -> Any:
    """Return the processes as what adds up tensors on the CPU; None where they are that already."""
    import torch.distributed as dist

    if dist.get_backend() == "gloo":
        return None
    key = id(dist.group.WORLD)
    if key not in _groups:
        _groups[key] = dist.new_group(backend="gloo")
    return _groups[key]


def summed(own: Mapping[str, Curvature], processes: Processes) -> dict[str, Curvature]:
    """Return the statistics of all processes together; each calls with what its own samples gave.

    Σx² are added in float64, Σ x·xᵀ in float64 and kept in float32; a tensor that some process has seen without its
    matrix gets none. Tensors that share a matrix in every process share the sum.
    """
    if not processes.are_several:
        return dict(own)
    import torch

    numbers: dict[int, int] = {}
    told = {
        name: (
            c.num_tokens,
            c.part_tokens,
            [term.shape for term in c.terms],
            None if c.gram is None else (numbers.setdefault(id(c.gram), len(numbers)), c.gram.shape),
        )
        for name, c in own.items()
    }
    every = _all(told, processes)
    names = sorted({name for one in every for name in one})
    seen = {name: [one[name] for one in every if name in one] for name in names}
    shapes = {name: sorted({shape for one in seen[name] for shape in one[2]}, reverse=True) for name in names}
    flat = torch.zeros(sum(prod(shape) for name in names for shape in shapes[name]), dtype=torch.float64)
    places, at = flat.numpy(), 0
    terms: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for name in names:
        given = {term.shape: term for term in own[name].terms} if name in own else {}
        for shape in shapes[name]:
            view = places[at : at + prod(shape)].reshape(shape)
            if shape in given:
                view[...] = given[shape]
            terms[name].append(view)
            at += view.size
    _add(flat, processes)
    grams: dict[Any, np.ndarray] = {}
    found = {}
    for name in names:
        parts = [one[1] for one in seen[name]]
        key = tuple(one[name][3] if name in one else None for one in every)
        whole = all(one[3] is not None for one in seen[name])
        if whole and key not in grams:
            shape = next(one[1] for one in key if one is not None)
            grams[key] = _summed_gram(own[name].gram if name in own else None, shape, processes)
        found[name] = Curvature(
            terms=tuple(terms[name]),
            num_tokens=sum(one[0] for one in seen[name]),
            gram=grams[key] if whole else None,
            part_tokens=None if None in parts else tuple(map(sum, zip(*parts, strict=True))),  # pyright: ignore[reportArgumentType]
        )
    return found


def _summed_gram(own: np.ndarray | None, shape: tuple[int, ...], processes: Processes) -> np.ndarray:
    import torch

    total = np.empty(shape, np.float32)
    flat, given = total.reshape(-1), None if own is None else own.reshape(-1)
    for start in range(0, flat.size, PIECE):
        size = min(PIECE, flat.size - start)
        piece = torch.zeros(size, dtype=torch.float64)
        if given is not None:
            piece.numpy()[:] = given[start : start + size]
        _add(piece, processes)
        flat[start : start + size] = piece.numpy()
    return total


def in_step(blocks: Iterator[Mapping[str, Curvature]], processes: Processes) -> Iterator[Mapping[str, Curvature]]:
    """Yield the statistics of all processes block by block: of tensors that no process adds to any more.

    Processes may come to their blocks in another order, or to others, as their samples differ.
    """
    if not processes.are_several:
        yield from blocks
        return
    connect(processes)
    held: dict[str, Curvature] = {}
    passed: list[set[str]] = [set() for _ in range(processes.count)]
    given: set[str] = set()
    ended = [False] * processes.count
    while not all(ended):
        block = next(blocks, None)
        held |= block or {}
        for rank, (names, is_over) in enumerate(_all((sorted(block or ()), block is None), processes)):
            passed[rank].update(names)
            ended[rank] = is_over
        known = set().union(*passed) - given
        ready = {n for n in known if all(n in own or over for own, over in zip(passed, ended, strict=True))}
        if ready:
            given |= ready
            yield summed({name: held.pop(name) for name in ready if name in held}, processes)


def all_summed(own: Mapping[str, Curvature], processes: Processes) -> Iterator[dict[str, Curvature]]:
    """Yield the statistics of all processes, a block at a time."""
    if not processes.are_several:
        yield dict(own)
        return
    connect(processes)
    every = {name for names in _all(sorted(own), processes) for name in names}
    for names in by_block(every):
        yield summed({name: own[name] for name in names if name in own}, processes)


def reasons_of_all(why_missing: Mapping[str, str], found: Collection[str], processes: Processes) -> dict[str, str]:
    """Return why tensors that were found in no process have no statistics."""
    every = _all(dict(why_missing), processes) if processes.are_several else [why_missing]
    return {name: reason for missing in reversed(every) for name, reason in missing.items() if name not in found}
