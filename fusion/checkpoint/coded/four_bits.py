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
from ..tensor_info import TensorInfo
from . import codes
from .coded import Coded, Form, Scaled, StoredParts, as_floats
from .scaled_bytes import IDLE

PAIRS = codes.nibble_pairs(codes.E2M1)
APART = codes.small_pairs(codes.E2M1)
UNSIGNED_ZERO = codes.nibble_pairs(codes.E2M1 + np.float32(0))  # as modelopt's table has it
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

    pairs = PAIRS if whole is None or divides else UNSIGNED_ZERO

    def values(first: int, last: int) -> np.ndarray:
        stored = parts.own.read(packed.name, first * columns // 2, last * columns // 2)
        return codes.looked_up(pairs, stored.view(np.uint8).reshape(-1, columns // 2))

    def scales(first: int, last: int) -> np.ndarray:
        found = parts.floats(scale.name, first * groups, last * groups).reshape(-1, groups)
        if whole is None:
            return found
        factor = parts.floats(whole).reshape(-1)[:1]
        return found / factor if divides else found * factor

    kind = DTYPES[dtype].numpy
    assert kind is not None
    decoder = Scaled(columns=columns, dtype=kind, values=values, scales=scales, width=columns // groups)
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
        stored=lambda: parts.stored(blocks.name).reshape(experts, outputs, groups * GROUP // 2),
        scales=lambda expert, first, last: as_floats(parts.stored(scale.name)[expert, :, first:last]),
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
    stored: Callable[[], np.ndarray]  # (experts, outputs, bytes)
    scales: Callable[[int, int, int], np.ndarray]  # of an expert's groups, (outputs, groups)

    def rows(self, first: int, last: int) -> np.ndarray:
        """Return rows, each an input of an expert."""
        out = np.empty((last - first, self.columns), self.dtype)
        stored, start = self.stored(), first
        while start < last:
            expert, row = divmod(start, self.inputs)
            stop = min(last, (expert + 1) * self.inputs)
            out[start - first : stop - first] = self._of_expert(stored[expert], expert, row, row + stop - start)
            start = stop
        return out

    def _of_expert(self, stored: np.ndarray, expert: int, row: int, stop: int) -> np.ndarray:
        """Return rows of an expert: the bytes are transposed, by whole groups, before they are looked up."""
        first, last = row // GROUP, -(-stop // GROUP)
        out = np.empty((last - first, GROUP, self.columns), self.dtype)
        scales = np.ascontiguousarray(self.scales(expert, first, last).T)
        for group in range(first, last):
            packed = np.ascontiguousarray(stored[:, group * GROUP // 2 : (group + 1) * GROUP // 2].T)
            halves = np.empty((len(packed), 2, self.columns), np.uint8)
            np.bitwise_and(packed, 15, out=halves[:, 0])
            np.right_shift(packed, 4, out=halves[:, 1])
            small = halves.reshape(GROUP, self.columns)
            even = self.columns % 2 == 0
            found = codes.looked_up(APART, small.view(np.uint16)) if even else np.take(codes.E2M1, small)
            with np.errstate(all="ignore"):
                found *= scales[group - first]
                out[group - first] = found
        return out.reshape(-1, self.columns)[row - first * GROUP : stop - first * GROUP]


def is_exponents(scale: TensorInfo) -> bool:
    """Return whether a scale is a power of two, as microscaling formats have it."""
    return scale.stored in ("U8", "F8_E8M0")


def groups_of(packed: TensorInfo, scale: TensorInfo) -> int:
    """Return how many elements share a scale, two to a byte; 0 where that is no whole number."""
    count = prod(packed.shape[-1:]) * 2
    return count // scale.shape[-1] if scale.shape and scale.shape[-1] and count % scale.shape[-1] == 0 else 0
