"""From what a model's parameters saw back to the tensors in the checkpoint's files.

On load transformers renames tensors and rearranges some: experts are stacked, gate and up projections joined, fused
projections split, rotary halves permuted. These operations only move elements, so statistics are moved back the same
way: by each operation's inverse on the small arrays that broadcast to the tensors, or, for an operation that is not
known here, by moving element numbers forward through the operation itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from .terms import Terms

Shape = tuple[int, ...]
Arrays = tuple[np.ndarray, ...]
Values = dict[str, list[Arrays]]  # pattern -> tensors in order -> arrays that broadcast to each


@dataclass(frozen=True)
class Conversion:
    """One operation of a conversion, with the shapes that it takes and gives, by pattern."""

    op: Any
    source_patterns: list[str]
    target_patterns: list[str]
    before: Mapping[str, list[Shape]]
    after: Mapping[str, list[Shape]]
    kwargs: Mapping[str, Any]

    def run(self, tensors: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the operation's outputs, each as a list; the operation may empty `tensors` to free memory."""
        out = self.op.convert(
            tensors,
            source_patterns=self.source_patterns,
            target_patterns=self.target_patterns,
            **self.kwargs,
        )
        return {key: list(value) if isinstance(value, list) else [value] for key, value in out.items()}


def pull_back(steps: Sequence[Conversion], values: Values) -> Values:
    """Return the arrays of the tensors that went into a conversion, from those of the tensors that came out."""
    for step in reversed(steps):
        kind = next((cls.__name__ for cls in type(step.op).__mro__ if cls.__name__ in INVERSES), None)
        inverse = INVERSES.get(kind) if kind else None
        moved = inverse(step, values) if inverse else None
        values = _by_element_numbers(step, values) if moved is None else moved
    return values


def _same(array: np.ndarray, axis: int, size: int) -> list[np.ndarray]:
    """Return the array's slices along an axis; an axis of 1 stands for `size` equal ones."""
    if array.shape[axis] == 1:
        return [np.take(array, 0, axis)] * size
    return [np.take(array, k, axis) for k in range(size)]


def _merge_list(step: Conversion, values: Values) -> Values | None:
    found: Values = {}
    for pattern, shapes in step.before.items():
        target = step.op.get_target_pattern(len(step.before), pattern, step.target_patterns)
        if target not in values:
            return None
        (arrays,) = values[target]
        slices = [_same(array, step.op.dim, len(shapes)) for array in arrays]
        found[pattern] = [tuple(piece[k] for piece in slices) for k in range(len(shapes))]
    return found


def _concatenate(step: Conversion, values: Values) -> Values | None:
    (outs,) = values.values()
    (arrays,) = outs
    found: Values = {}
    start, axis = 0, step.op.dim
    for pattern in step.source_patterns:
        if pattern not in step.before:
            continue
        pieces: list[Arrays] = []
        for shape in step.before[pattern]:
            stop = start + shape[axis]
            pieces.append(
                tuple(array if array.shape[axis] == 1 else np.take(array, range(start, stop), axis) for array in arrays)
            )
            start = stop
        found[pattern] = pieces
    return found


def _split(step: Conversion, values: Values) -> Values | None:
    """Join the arrays of the pieces that a tensor was cut into; equal inputs stay one."""
    ((pattern, _),) = step.before.items()
    axis = step.op.dim
    pieces = [(values.get(target, [()])[0], shapes[0]) for target, shapes in step.after.items()]
    count = max(len(arrays) for arrays, _ in pieces)
    joined = []
    for number in range(count):
        parts = [
            (arrays[number] if number < len(arrays) else np.zeros((1,) * len(shape)), shape[axis])
            for arrays, shape in pieces
        ]
        first = parts[0][0]
        if all(part.shape == first.shape and part.shape[axis] == 1 and (part == first).all() for part, _ in parts):
            joined.append(first)
            continue
        others = np.broadcast_shapes(*(np.take(part, [0], axis).shape for part, _ in parts))
        shapes = [tuple(size if k == axis else other for k, other in enumerate(others)) for _, size in parts]
        full = [np.broadcast_to(part, shape) for (part, _), shape in zip(parts, shapes, strict=True)]
        joined.append(np.concatenate(full, axis))
    return {pattern: [tuple(joined)]}


def _transpose(step: Conversion, values: Values) -> Values | None:
    ((pattern, before),) = step.before.items()
    ((_, after),) = step.after.items()
    (outs,) = values.values()
    if step.op.check_dims and before == after:
        return {pattern: outs}
    return {pattern: [tuple(np.swapaxes(array, step.op.dim0, step.op.dim1) for array in arrays) for arrays in outs]}


def _flatten(step: Conversion, values: Values) -> Values | None:
    """Undo (out, in, t, h, w) -> (out, in·t·h·w), or the way round."""
    ((pattern, before),) = step.before.items()
    (outs,) = values.values()
    (shape,) = before
    found = []
    for array in outs[0]:
        inputs = array.shape[1:]
        if prod(inputs) == 1:
            found.append(array.reshape(array.shape[0], *(1,) * (len(shape) - 1)))
        elif prod(inputs) == prod(shape[1:]):
            found.append(array.reshape(array.shape[0], *shape[1:]))
        else:
            return None
    return {pattern: [tuple(found)]}


def _permute_rows(step: Conversion, values: Values) -> Values | None:
    """Undo a permutation of rows: nothing to do where all rows have the same inputs."""
    axis = getattr(step.op, "dim", 0)
    if any(array.shape[axis] != 1 for outs in values.values() for arrays in outs for array in arrays):
        return None
    keys = list(values)
    if list(step.before) == keys:
        return values
    if len(step.before) == len(keys) == 1:
        return {next(iter(step.before)): values[keys[0]]}
    return None


INVERSES: dict[str, Callable[[Conversion, Values], Values | None]] = {
    "MergeModulelist": _merge_list,
    "Concatenate": _concatenate,
    "Chunk": _split,
    "Split": _split,
    "Transpose": _transpose,
    "Conv3dToLinear": _flatten,
    "LinearToConv3d": _flatten,
    "Interleave": _permute_rows,
    "PermuteForRope": _permute_rows,
}


def _by_element_numbers(step: Conversion, values: Values) -> Values:
    """Return the arrays of a step's inputs by running it on element numbers: exact for whatever only moves elements."""
    import torch

    start = 0
    numbers: dict[str, Any] = {}
    spans: dict[str, list[tuple[int, Shape]]] = {}
    for pattern, shapes in step.before.items():
        numbers[pattern], spans[pattern] = [], []
        for shape in shapes:
            numbers[pattern].append(torch.arange(start, start + prod(shape)).reshape(shape))
            spans[pattern].append((start, shape))
            start += prod(shape)
    moved = step.run(numbers)
    count = max((len(arrays) for outs in values.values() for arrays in outs), default=0)
    flat = np.zeros((count, start))
    for target, outs in values.items():
        for arrays, where in zip(outs, moved[target], strict=True):
            for k, array in enumerate(arrays):
                flat[k, where.numpy().reshape(-1)] = np.broadcast_to(array, tuple(where.shape)).reshape(-1)
    return {
        pattern: [
            tuple(collapse(row[begin : begin + prod(shape)].reshape(shape)) for row in flat) for begin, shape in pieces
        ]
        for pattern, pieces in spans.items()
    }


def collapse(array: np.ndarray) -> np.ndarray:
    """Return the array with each axis along which it is constant reduced to 1."""
    for axis, size in enumerate(array.shape):
        first = np.take(array, [0], axis) if size else array
        if size > 1 and (array == first).all():
            array = first
    return np.ascontiguousarray(array)


def num_rows(terms: Terms) -> int:
    """Return the rows that were summed; over experts in one tensor, those of all of them."""
    return max((round(float(counts.sum())) for counts in terms.counts), default=0)
