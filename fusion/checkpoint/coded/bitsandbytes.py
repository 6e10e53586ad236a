"""Weights as bitsandbytes keeps them: NF4 and FP4 in blocks of the flat tensor, and rows of int8.

What it does: `dequantize_4bit`, after `dequantize_blockwise` of the scales where these are quantised too, and
`int8_vectorwise_dequant`; all in float32, rounded once to the dtype that the tensor had.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

import numpy as np

from ...dtypes import BY_TORCH_NAME, DTYPES
from ...errors import CheckpointError
from ..tensor_info import TensorInfo
from . import codes
from .coded import Coded, Scaled, StoredParts, by_rows, rows_of_bytes

STATE = ".quant_state.bitsandbytes__"
FULL = 127  # the int8 code of the largest element of a row


def four_bit(parts: StoredParts, state: TensorInfo) -> Coded:
    """Return a 4-bit weight by the tensor that holds what is not one."""
    name, _, kind = state.name.partition(STATE)
    weight, scale, table = (parts.info(name + end) for end in ("", ".absmax", ".quant_map"))
    try:
        said = json.loads(parts.stored(state.name).tobytes())
        shape, block = tuple(int(size) for size in said["shape"]), int(said["blocksize"])
        dtype = BY_TORCH_NAME[said["dtype"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"`{state.name}` in `{parts.own.ref}` does not describe a tensor: {error}") from error
    count, blocks = prod(shape), -(-prod(shape) // max(1, block))
    if weight is None or scale is None or table is None or block < 2 or block % 2 or not dtype.fusible:
        raise CheckpointError(f"`{name}` in `{parts.own.ref}` lacks its scales or its table of {kind} values")
    if weight.nbytes * 2 != count + count % 2 or prod(scale.shape) != blocks or prod(table.shape) != 16:
        raise parts.misfit(name, scale.name, f"not of blocks of {block} of {list(shape)}")
    _refuse_misfit(parts, name, said, blocks)
    meant = parts.floats(table.name)
    if kind == "fp4":  # its kernels take the sign from the code, of zero too
        meant = np.where(np.arange(16) < 8, meant, -np.abs(meant))
    table = np.ascontiguousarray(meant.reshape(-1), np.float32)

    def packed(first: int, last: int) -> np.ndarray:
        size = DTYPES[weight.stored].bits // 8  # it may be kept in elements of any dtype, for those who shard them
        stored = parts.own.read(name, first * block // 2 // size, min(weight.nbytes, last * block // 2) // size)
        found = stored.view(np.uint8)
        if missing := (last - first) * block // 2 - len(found):
            found = np.concatenate([found, np.zeros(missing, np.uint8)])
        return found.reshape(last - first, -1)

    assert dtype.numpy is not None
    decoder = Scaled(
        columns=block,
        dtype=dtype.numpy,
        codes=packed,
        table=table,
        high_first=True,
        scales=_scales(parts, name, said),
        width=block,
    )
    beside = (".absmax", ".quant_map", STATE + kind, ".nested_absmax", ".nested_quant_map")
    return parts.coded(
        name,
        f"bitsandbytes {kind}",
        decoder,
        shape=shape,
        dtype=dtype.code,
        codes=name,
        beside=tuple(name + end for end in beside),
    )


def _refuse_misfit(parts: StoredParts, name: str, said: dict[str, Any], blocks: int) -> None:
    """Refuse scales that are quantised themselves and lack what they are made of.

    Raises:
        CheckpointError: They do.
    """
    if "nested_blocksize" not in said:
        return
    scale, table = (parts.info(f"{name}.{part}") for part in ("nested_absmax", "nested_quant_map"))
    block, offset = said["nested_blocksize"], said.get("nested_offset")
    described = isinstance(block, int) and block > 0 and isinstance(offset, (int, float))
    fits = described and scale is not None and prod(scale.shape) == -(-blocks // block)
    if not fits or table is None or prod(table.shape) != 256 or parts.own.tensors[f"{name}.absmax"].stored != "U8":
        raise CheckpointError(
            f"the scales of `{name}` in `{parts.own.ref}` are quantised, and `nested_absmax` or `nested_quant_map` "
            "beside them is missing or does not fit"
        )


def _scales(parts: StoredParts, name: str, said: dict[str, Any]) -> Any:
    if "nested_blocksize" not in said:
        return by_rows(parts, f"{name}.absmax", 1)
    block, offset = int(said["nested_blocksize"]), np.float32(said["nested_offset"])

    def nested(first: int, last: int) -> np.ndarray:
        values = parts.floats(f"{name}.nested_quant_map")[parts.own.read(f"{name}.absmax", first, last)]
        low = first // block
        scales = parts.floats(f"{name}.nested_absmax", low, -(-last // block))
        return (values * scales[np.arange(first, last) // block - low] + offset)[:, None]

    return nested


def eight_bit(parts: StoredParts, weight: TensorInfo, scale: TensorInfo) -> Coded:
    """Return a weight of rows of int8."""
    rows, columns = weight.shape
    stem = weight.name.rpartition(".")[0]
    layout = parts.info(f"{stem}.weight_format")
    if prod(scale.shape) != rows or (layout is not None and parts.stored(layout.name).any()):
        raise parts.misfit(weight.name, scale.name, "expected a scale for each row, and rows that lie in order")

    decoder = Scaled(
        columns=columns,
        dtype=np.dtype(np.float32),
        codes=rows_of_bytes(parts, weight.name, columns),
        table=codes.byte_values("I8"),
        scales=by_rows(parts, scale.name, 1),
        width=columns,
        times=1 / FULL,
    )
    return parts.coded(
        weight.name,
        "bitsandbytes int8",
        decoder,
        shape=weight.shape,
        dtype="F32",
        codes=weight.name,
        beside=(scale.name, f"{stem}.weight_format"),
    )
