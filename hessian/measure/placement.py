"""Which elements of a parameter a tensor is a view of.

Models use parameters whole, transposed, one expert at a time, in chunks, or flattened. All of these are views of
one storage, so sizes, strides and offset tell which axis of the parameter each axis of the view runs over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod


@dataclass(frozen=True)
class Placement:
    """Where a view lies in its parameter.

    Attributes:
        axes: For each axis of the view the axes of the parameter that it runs over, in order; none where the view
            only repeats (a broadcast axis) or has one element.
        part: For each axis of the parameter the part that the view covers.
        shape: Of the parameter; an axis that the view splits, as heads are split from rows, is split here too.
    """

    axes: tuple[tuple[int, ...], ...]
    part: tuple[slice, ...]
    shape: tuple[int, ...]

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Return whether the view covers the whole parameter."""
        return all(part == slice(0, size) for part, size in zip(self.part, shape, strict=True))


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor."""
    return tuple(accumulate(reversed((*shape[1:], 1)), lambda stride, size: stride * size))[::-1] if shape else ()


@lru_cache(maxsize=1 << 14)
def locate(shape: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Placement | None:
    """Return where a view lies in a contiguous parameter, or None where it is no box of it (such as every second row).

    Args:
        shape: Of the parameter.
        sizes: Of the view.
        strides: Of the view, in elements.
        offset: Of the view's first element in the parameter's storage, in elements.
    """
    shape = _refined(shape, sizes, strides)
    own = strides_of(shape)
    first = [offset // stride % size if size else 0 for stride, size in zip(own, shape, strict=True)]
    part = [slice(index, index + 1) for index in first]
    axes: list[tuple[int, ...]] = []
    taken: set[int] = set()
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1 or stride == 0:
            axes.append(())
            continue
        last = next((k for k, s in enumerate(own) if s == stride and shape[k] > 1), None)
        if last is None:
            return None
        run = _run(shape, last, size)
        if run is None:
            if first[last] + size > shape[last]:
                return None
            run = (last,)
            part[last] = slice(first[last], first[last] + size)
        else:
            if any(first[k] for k in run):
                return None
            for k in run:
                part[k] = slice(0, shape[k])
        if taken.intersection(run):
            return None
        taken.update(run)
        axes.append(run)
    return Placement(tuple(axes), tuple(part), shape)


def _refined(shape: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with axes split where the view steps over several elements of one and takes those in between.

    A view that steps over elements without taking them, such as every second row, is left for `locate` to refuse.
    """
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1 or stride == 0 or stride in strides_of(shape):
            continue
        for axis, own in enumerate(strides_of(shape)):
            block, left = divmod(stride, own)
            if left == 0 and 1 < block < shape[axis] and shape[axis] % block == 0 and _takes(own, sizes, strides):
                shape = (*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])
                break
    return shape


def _takes(stride: int, sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    return any(own == stride and size > 1 for size, own in zip(sizes, strides, strict=True))


def _run(shape: Sequence[int], last: int, size: int) -> tuple[int, ...] | None:
    """Return the axes up to `last` whose sizes multiply to `size`, or None where there are none."""
    for start in range(last, -1, -1):
        covered = prod(shape[start : last + 1])
        if covered == size:
            return tuple(k for k in range(start, last + 1) if shape[k] > 1)
        if covered > size:
            return None
    return None


def compose(outer: Placement, inner: Placement) -> Placement | None:
    """Return where a view of a copy lies in the parameter that the copy was made of.

    `outer` places the copy in the parameter, `inner` the view in the copy. None where an axis of the copy runs over
    several axes of the parameter, unless the view takes it whole or not at all.
    """
    if len(inner.shape) != len(outer.axes):
        return None
    part = list(outer.part)
    for axis, run in enumerate(outer.axes):
        piece = inner.part[axis]
        if len(run) == 1:
            start = outer.part[run[0]].start + piece.start
            part[run[0]] = slice(start, start + piece.stop - piece.start)
        elif len(run) > 1 and piece.stop - piece.start != prod(outer.part[k].stop - outer.part[k].start for k in run):
            return None
    axes = tuple(tuple(k for axis in run for k in outer.axes[axis]) for run in inner.axes)
    return Placement(axes, tuple(part), outer.shape)
