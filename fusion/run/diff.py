"""How far two checkpoints lie apart, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np

from ..checkpoint import Source, TensorInfo, open_checkpoint
from ..names import align

TILE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TensorDiff:
    """One tensor of both checkpoints, `second − first`.

    Attributes:
        changed: Share of elements that differ, in [0, 1].
        relative_norm: ‖second − first‖₂ / ‖first‖₂; infinite where the first is all zero and the second is not.
        largest: Largest |second − first|.
    """

    name: str
    num_elements: int
    changed: float
    relative_norm: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class CheckpointDiff:
    """What both have, in file order; what only one has; what has another shape or dtype."""

    tensors: tuple[TensorDiff, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    other_form: tuple[str, ...]


def _tensor_diff(first: Source, second: Source, one: TensorInfo, other: TensorInfo) -> TensorDiff:
    changed, squares, norm, largest = 0, 0.0, 0.0, 0.0
    for start in range(0, one.num_elements, TILE):
        stop = min(start + TILE, one.num_elements)
        a, b = first.read(one.name, start, stop), second.read(other.name, start, stop)
        a = a.astype(b.dtype, copy=False)  # what an adapter makes is wider than its base
        changed += int(np.count_nonzero(a.view(f"V{a.itemsize}") != b.view(f"V{b.itemsize}")))
        with np.errstate(all="ignore"):
            wide = a.astype(np.float64)
            delta = b.astype(np.float64) - wide
        squares += float(delta @ delta)
        norm += float(wide @ wide)
        largest = max(largest, float(np.abs(delta).max(initial=0.0)))
    first.release(one.name)
    second.release(other.name)
    relative = sqrt(squares / norm) if norm else (float("inf") if squares else 0.0)
    return TensorDiff(
        name=one.name,
        num_elements=one.num_elements,
        changed=changed / one.num_elements if one.num_elements else 0.0,
        relative_norm=relative,
        largest=largest,
    )


def _same_form(one: TensorInfo, other: TensorInfo) -> bool:
    return one.shape == other.shape and one.dtype in (other.dtype, other.stored)


def diff(
    first: Path | str,
    second: Path | str,
    *,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _name: None,
) -> CheckpointDiff:
    """Compare two checkpoints; names that differ by a prefix are matched as a fuse matches them.

    Raises:
        CheckpointError: One of them cannot be read.
    """
    a = open_checkpoint(first)
    b = open_checkpoint(second, a)
    shapes = [{name: info.shape for name, info in checkpoint.tensors.items()} for checkpoint in (a, b)]
    matched = align(shapes[0], shapes[1]).pairs
    same = [
        (info, b.tensors[matched[name]])
        for name, info in a.tensors.items()
        if name in matched and _same_form(info, b.tensors[matched[name]])
    ]
    total, done, found = sum(info.nbytes for info, _ in same), 0, []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for (info, _), result in zip(same, pool.map(lambda pair: _tensor_diff(a, b, *pair), same), strict=True):
            found.append(result)
            done += info.nbytes
            progress(done, total, info.name)
    compared = {info.name for info, _ in same}
    return CheckpointDiff(
        tensors=tuple(found),
        only_first=tuple(name for name in a.tensors if name not in matched),
        only_second=tuple(name for name in b.tensors if name not in set(matched.values())),
        other_form=tuple(name for name in matched if name not in compared),
    )
