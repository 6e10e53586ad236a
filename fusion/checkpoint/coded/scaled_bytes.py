"""Weights of one byte an element with scales of blocks, rows or the whole: FP8 and int8.

What libraries do: `Fp8Dequantize` of transformers (DeepSeek's blocks), `dequantize` of compressed-tensors, fbgemm's
rows, modelopt's single scales. All multiply in float32, but compressed-tensors in the dtype of its scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ...dtypes import DTYPES
from ..tensor_info import TensorInfo
from . import codes
from .coded import Coded, Form, Rows, Scaled, StoredParts, rows_of_bytes

DEFAULT_BLOCK = 128  # DeepSeek's
FP8 = "F8_E4M3"
ZERO = "weight_zero_point"
BYTES = ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "I8")
IDLE = ("input_scale", "activation_scale", "input_scale_ub", "input_zero_point", "output_scale", "weight_shape")


def scaled_bytes(parts: StoredParts, weight: TensorInfo, scale: TensorInfo, *, inverse: bool) -> Coded:
    """Return a weight of one byte an element.

    Args:
        inverse: Whether the scale has the name of transformers' fine-grained FP8 (`weight_scale_inv`, `scale`), whose
            products are rounded once, to the model's dtype.
    """
    decoder = _OfBytes(parts, weight, scale, inverse)
    _, block = decoder.blocks()  # which refuses what does not fit
    stem = weight.name.rpartition(".")[0]
    zero = parts.info(f"{stem}.{ZERO}")
    if zero is not None and prod(zero.shape) != prod(scale.shape):
        raise parts.misfit(weight.name, zero.name, f"expected as many zeros as `{scale.name}` has scales")
    kind = "int8" if weight.stored == "I8" else "FP8"
    written = inverse and weight.stored == FP8 and len(weight.shape) == 2 and scale.stored in ("F32", "F8_E8M0")
    form = Form(kind="fp8", block=block, codes=weight.name, scales=scale.name, scale_dtype=scale.stored)
    return parts.coded(
        weight.name,
        kind,
        decoder,
        shape=weight.shape,
        dtype=decoder.dtype,
        codes=weight.name,
        beside=(scale.name, *(f"{stem}.{name}" for name in (ZERO, *IDLE))),
        form=form if written and len(scale.shape) == 2 else None,
    )


class _OfBytes(NamedTuple):
    """What decodes such a weight, made as it is read: a model has 100,000."""

    parts: StoredParts
    weight: TensorInfo
    scale: TensorInfo
    inverse: bool

    @property
    def columns(self) -> int:
        """How many elements a row has."""
        return (1, *self.weight.shape)[-1]

    @property
    def dtype(self) -> str:
        """Code of the float that is read."""
        kind = DTYPES[self.scale.stored]
        return self.scale.stored if kind.bits == 16 and kind.fusible and not self.inverse else self.parts.dtype

    def blocks(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return how many scales a matrix has along its rows and columns, and how many of these share one."""
        parts, weight, scale, _ = self
        grid = _grid(parts, weight, scale, prod(weight.shape[:-2]))
        rows, columns = (1, *weight.shape)[-2:]
        down = _block(parts, weight, scale, rows, grid[0], 0)
        return grid, (down, _block(parts, weight, scale, columns, grid[1], 1))

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return rows `first … last − 1`."""
        parts, weight, scale, _ = self
        grid, (down, across) = self.blocks()
        height, columns = (1, *weight.shape)[-2:]
        matrices = prod(weight.shape[:-2])
        per_row = height % down != 0 and matrices > 1  # a block of rows would reach into the next matrix
        zero = parts.info(f"{weight.name.rpartition('.')[0]}.{ZERO}")

        return Scaled(
            columns=columns,
            dtype=_numpy(self.dtype),
            codes=rows_of_bytes(parts, weight.name, columns),
            table=codes.byte_values(weight.stored),
            scales=_scales(parts, scale, grid, height, down, per_row),
            row_block=1 if per_row else (matrices * height if prod(scale.shape) == 1 else down),
            width=across,
            zeros=None if zero is None else _scales(parts, zero, grid, height, down, per_row),
        ).rows(first, last)


def _numpy(code: str) -> np.dtype:
    kind = DTYPES[code].numpy
    assert kind is not None  # floats that are computed with
    return kind


def _grid(parts: StoredParts, weight: TensorInfo, scale: TensorInfo, matrices: int) -> tuple[int, int]:
    """Return how many scales a matrix has along its rows and columns."""
    if prod(scale.shape) == 1:
        return 1, 1
    if len(weight.shape) == 2 and scale.shape == weight.shape[:1]:
        return scale.shape[0], 1
    if len(scale.shape) == len(weight.shape) and prod(scale.shape[:-2]) == matrices:
        return scale.shape[-2], scale.shape[-1]
    if len(weight.shape) == 3 and scale.shape in ((matrices,), (matrices, 1), (matrices, 1, 1)):
        return 1, 1
    raise parts.misfit(weight.name, scale.name, "neither a scale for each block nor for each row")


def _block(parts: StoredParts, weight: TensorInfo, scale: TensorInfo, size: int, count: int, axis: int) -> int:
    """Return how many rows or columns share a scale."""
    if count in (1, size):
        return max(1, size // max(1, count))
    block, said = DEFAULT_BLOCK, [*_said_blocks(parts.said, axis)]
    for block in (*said, DEFAULT_BLOCK):
        if -(-size // block) == count:
            return block
    if size % count == 0 and not said:
        return size // count
    raise parts.misfit(weight.name, scale.name, f"blocks of {block} do not give {count} scales for {size}")


def _said_blocks(said: Any, axis: int) -> Iterator[int]:
    """Yield the sizes of blocks that a configuration speaks of."""
    for key, value in said.items() if isinstance(said, Mapping) else ():
        if key in ("weight_block_size", "block_structure") and isinstance(value, list) and len(value) == 2:
            if isinstance(value[axis], int) and value[axis] > 0:
                yield value[axis]
        else:
            yield from _said_blocks(value, axis)


def _scales(parts: StoredParts, scale: TensorInfo, grid: tuple[int, int], rows: int, block: int, per_row: bool) -> Rows:
    down, across = grid
    if prod(scale.shape) == 1:
        return lambda first, last: np.broadcast_to(parts.floats(scale.name).reshape(1, 1), (last - first, 1))

    def of_blocks(first: int, last: int) -> np.ndarray:
        return parts.floats(scale.name, first * across, last * across).reshape(-1, across)

    def of_rows(first: int, last: int) -> np.ndarray:
        row = np.arange(first, last)
        numbers = row // rows * down + row % rows // block
        lowest = int(numbers[0])
        return of_blocks(lowest, int(numbers[-1]) + 1)[numbers - lowest]

    return of_rows if per_row else of_blocks
