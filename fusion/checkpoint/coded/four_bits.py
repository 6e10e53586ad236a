"""Weights of FP4 (E2M1), two to a byte, the lower half first: MXFP4 with exponents for 32, NVFP4 with FP8 for 16.

What libraries do: `convert_moe_packed_tensors` of transformers (gpt-oss), its `Fp8Dequantize` (DeepSeek's experts), the
packed compressors of compressed-tensors, `NVFP4QTensor` of modelopt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import final

import numpy as np

from ...dtypes import DTYPES
from ...native import TAKEN_FOR, Kernel, address
from ..tensor_info import TensorInfo
from . import codes
from .coded import Coded, Form, Rows, Scaled, StoredParts, as_floats, rows_of_bytes
from .scaled_bytes import IDLE

ACROSS = Kernel("coded", "across", "FBFF uuuu")
UNSIGNED_ZERO = codes.E2M1 + np.float32(0)  # as modelopt's table has it
AT_ONCE = 16  # outputs of an expert that the kernel has in hand
GROUP = 32  # elements that share an exponent in MXFP4


def packed_rows(
    parts: StoredParts,
    packed: TensorInfo,
    scale: TensorInfo,
    *,
    parameter: str,
    dtype: str,
    whole: str | None = None,
    divides: bool = False,
) -> Coded:
    """Return a weight whose rows are packed, with a scale for each group of columns.

    Args:
        whole: Name of the scale of the whole tensor, which multiplies or `divides` those of the groups.
    """
    shape = (*packed.shape[:-1], 2 * packed.shape[-1])
    columns, groups = shape[-1], scale.shape[-1] if scale.shape else 0
    if scale.shape[:-1] != shape[:-1] or not groups or columns % groups:
        raise parts.misfit(packed.name, scale.name, "expected a scale for each group of a row")

    def scales(first: int, last: int) -> np.ndarray:
        found = parts.floats(scale.name, first * groups, last * groups).reshape(-1, groups)
        if whole is None:
            return found
        factor = parts.floats(whole).reshape(-1)[:1]
        return found / factor if divides else found * factor

    kind = DTYPES[dtype].numpy
    assert kind is not None
    decoder = Scaled(
        columns=columns,
        dtype=kind,
        codes=rows_of_bytes(parts, packed.name, packed.shape[-1]),
        table=codes.E2M1 if whole is None or divides else UNSIGNED_ZERO,
        scales=scales,
        width=columns // groups,
    )
    stem = packed.name.rpartition(".")[0]
    beside = (scale.name, *([whole] if whole else []), *(f"{stem}.{name}" for name in (*IDLE, "input_global_scale")))
    name = "MXFP4" if whole is None else "NVFP4"
    return parts.coded(parameter, name, decoder, shape=shape, dtype=dtype, codes=packed.name, beside=beside)


def expert_blocks(parts: StoredParts, blocks: TensorInfo, scale: TensorInfo) -> Coded:
    """Return the experts of gpt-oss: (experts, outputs, groups, 16) bytes that make (experts, inputs, outputs)."""
    if len(blocks.shape) != 4 or blocks.shape[-1] * 2 != GROUP or scale.shape != blocks.shape[:-1]:
        raise parts.misfit(
            blocks.name, scale.name, "expected (experts, outputs, groups, 16) and a scale for each group"
        )
    experts, outputs, groups, _ = blocks.shape
    kind = DTYPES[parts.dtype].numpy
    assert kind is not None
    decoder = _Transposed(
        inputs=groups * GROUP,
        columns=outputs,
        dtype=kind,
        stored=rows_of_bytes(parts, blocks.name, outputs * groups * GROUP // 2),
        scales=lambda expert, first, last: as_floats(
            parts.own.read(scale.name, expert * outputs * groups, (expert + 1) * outputs * groups)
            .reshape(outputs, groups)[:, first:last]
            .T
        ),
    )
    return parts.coded(
        blocks.name.removesuffix("_blocks"),
        "MXFP4",
        decoder,
        shape=(experts, groups * GROUP, outputs),
        dtype=parts.dtype,
        codes=blocks.name,
        beside=(scale.name,),
        in_order=False,
        form=Form(kind="mxfp4", codes=blocks.name, scales=scale.name),
    )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Transposed:
    """Experts whose inputs lie in the bytes one after the other, and in the parameter one below the other."""

    inputs: int
    columns: int
    dtype: np.dtype
    stored: Rows  # experts, (experts, bytes)
    scales: Callable[[int, int, int], np.ndarray]  # of an expert's groups, (groups, outputs)

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return rows, each an input of an expert."""
        kernel_dtype = self.dtype if self.dtype in TAKEN_FOR else np.dtype(np.float32)
        out = np.empty((last - first, self.columns), kernel_dtype)
        wide, start = np.empty((GROUP, AT_ONCE), np.float32), first
        while start < last and self.columns:
            expert, row = divmod(start, self.inputs)
            stop = min(last, (expert + 1) * self.inputs)
            end = row + stop - start
            stored = np.ascontiguousarray(self.stored(expert, expert + 1))
            scales = np.ascontiguousarray(self.scales(expert, row // GROUP, -(-end // GROUP)), np.float32)
            assert stored.size * 2 == self.inputs * self.columns
            assert scales.shape == (-(-end // GROUP) - row // GROUP, self.columns)
            places = (address(each) for each in (wide, stored, codes.E2M1, scales))
            ACROSS((out[start - first :],), *places, row, end, self.columns, self.inputs // 2)
            start = stop
        return out.astype(self.dtype, copy=False)


def is_exponents(scale: TensorInfo) -> bool:
    """Return whether a scale is a power of two, as microscaling formats have it."""
    return scale.stored in ("U8", "F8_E8M0")


def groups_of(packed: TensorInfo, scale: TensorInfo) -> int:
    """Return how many elements share a scale, two to a byte; 0 where that is no whole number."""
    count = prod(packed.shape[-1:]) * 2
    return count // scale.shape[-1] if scale.shape and scale.shape[-1] and count % scale.shape[-1] == 0 else 0
