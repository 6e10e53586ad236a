"""Weights of one byte an element with scales of blocks, rows or the whole: FP8 and int8.

What libraries do: `Fp8Dequantize` of transformers (DeepSeek's blocks), `dequantize` of compressed-tensors, fbgemm's
rows, modelopt's single scales. All multiply in float32, but compressed-tensors in the dtype of its scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from ...dtypes import DTYPES
from ..tensor_info import TensorInfo
from . import codes
from .coded import Coded, Form, Rows, Scaled, StoredParts

DEFAULT_BLOCK = 128  # DeepSeek's
FP8 = "F8_E4M3"
BYTES = ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "I8")
IDLE = ("input_scale", "activation_scale", "input_scale_ub", "input_zero_point", "output_scale", "weight_shape")


def scaled_bytes(parts: StoredParts, weight: TensorInfo, scale: TensorInfo, *, inverse: bool) -> Coded:
    """Return a weight of one byte an element.

    Args:
        inverse: Whether the scale has the name of transformers' fine-grained FP8 (`weight_scale_inv`, `scale`), whose
            products are rounded once, to the model's dtype.
    """
    rows, columns = (1, *weight.shape)[-2:]
    matrices = prod(weight.shape[:-2])
    grid = _grid(parts, weight, scale, matrices)
    blocks = [
        _block(parts, weight, scale, *pair, axis) for axis, pair in enumerate(zip((rows, columns), grid, strict=True))
    ]
    stem = weight.name.rpartition(".")[0]
    zero = f"{stem}.weight_zero_point"
    through = None if inverse or DTYPES[scale.stored].bits != 16 else scale.kind.numpy
    half = scale.stored if DTYPES[scale.stored].bits == 16 and DTYPES[scale.stored].fusible else parts.dtype
    dtype = parts.dtype if inverse else half

    def values(first: int, last: int) -> np.ndarray:
        stored = parts.own.read(weight.name, first * columns, last * columns)
        return codes.of_bytes(weight.stored, stored.reshape(-1, columns))

    per_row = rows % blocks[0] != 0 and matrices > 1  # a block of rows would reach into the next matrix
    decoder = Scaled(
        columns=columns,
        dtype=_numpy(dtype),
        values=values,
        scales=_scales(parts, scale, grid, rows, blocks[0], per_row),
        row_block=1 if per_row else (matrices * rows if prod(scale.shape) == 1 else blocks[0]),
        width=blocks[1],
        zeros=_scales(parts, parts.own.tensors[zero], grid, rows, blocks[0], per_row)
        if zero in parts.own.tensors
        else None,
        through=through,
    )
    beside = (scale.name, zero, *(f"{stem}.{name}" for name in IDLE))
    kind = "int8" if weight.stored == "I8" else "FP8"
    written = inverse and weight.stored == FP8 and len(weight.shape) == 2 and scale.stored in ("F32", "F8_E8M0")
    form = Form(
        kind="fp8", block=(blocks[0], blocks[1]), codes=weight.name, scales=scale.name, scale_dtype=scale.stored
    )
    return parts.coded(
        weight.name,
        kind,
        decoder,
        shape=weight.shape,
        dtype=dtype,
        codes=weight.name,
        beside=beside,
        form=form if written and len(scale.shape) == 2 else None,
    )


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
    block = DEFAULT_BLOCK
    for block in (*_said_blocks(parts.said, axis), DEFAULT_BLOCK):
        if -(-size // block) == count:
            return block
    if size % count == 0:
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
