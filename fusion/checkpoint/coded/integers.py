"""Weights of few bits with scales and zeros of groups: compressed-tensors, GPTQ, AWQ, MLX.

What libraries do: `PackedQuantizationCompressor` of compressed-tensors, the torch layers of AutoGPTQ and GPTQModel,
`dequantize_gemm` of AutoAWQ, `mlx.core.dequantize`. All compute in the dtype of the scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...native import Kernel, address
from ..tensor_info import TensorInfo
from . import codes
from .coded import Coded, Rows, Scaled, StoredParts, by_rows, rows_of_bytes

WORD = 32
ACTIVATIONS = ("input_activations", "output_activations", "kv_cache_scheme")
PLANES = Kernel("coded", "planes", "WBI uu")
TURNED = Kernel("coded", "turned", "WW uuuu")
AWQ_PLACES = 4 * np.array([0, 4, 1, 5, 2, 6, 3, 7], np.int32)  # the first bit of each of eight columns in a word


def _float(parts: StoredParts, scale: TensorInfo) -> np.dtype:
    kind = scale.kind
    if not kind.fusible or kind.numpy is None:
        raise CheckpointError(f"`{scale.name}` in `{parts.own.ref}` is {kind.torch}, expected scales of a float dtype")
    return kind.numpy


def _group_numbers(parts: StoredParts, name: str, columns: int, groups: int) -> np.ndarray | None:
    """Return the scale's number of each column, where a checkpoint lists it (`desc_act`, `actorder`)."""
    if name not in parts.own.tensors:
        return None
    found = parts.stored(name).reshape(-1).astype(np.int64)
    if found.shape != (columns,) or (found.size and not (found.min() >= 0 and found.max() < groups)):
        raise CheckpointError(
            f"`{name}` in `{parts.own.ref}` is not a list of groups below {groups} for {columns} columns"
        )
    return found


def compressed(parts: StoredParts, packed: TensorInfo) -> Coded | None:
    """Return a `pack-quantized` weight of compressed-tensors; None where a tensor beside it is missing."""
    stem = packed.name.removesuffix("_packed")
    scale, shape = parts.info(f"{stem}_scale"), parts.info(f"{stem}_shape")
    if scale is None or shape is None or len(packed.shape) != 2:
        return None
    if prod(shape.shape) < 2:
        raise parts.misfit(packed.name, shape.name, "expected the two sizes of a matrix")
    rows, columns = (int(size) for size in parts.stored(shape.name).reshape(-1)[-2:])
    groups = scale.shape[-1] if len(scale.shape) == 2 else 1
    per_row = len(scale.shape) == 2 or scale.shape == (rows,)
    fits = rows == packed.shape[0] and groups > 0 and columns % groups == 0
    if not fits or (per_row and scale.shape[0] != rows) or (not per_row and prod(scale.shape) != 1):
        raise parts.misfit(packed.name, scale.name, f"expected the scales of [{rows}, {columns}]")
    bits = _bits_of(parts, packed, columns)
    dtype, offset, words = _float(parts, scale), 1 << (bits - 1), packed.shape[1]
    zero = parts.info(f"{stem}_zero_point")
    if zero is None and _said_values(parts.said, "symmetric") == {False}:
        raise CheckpointError(
            f"`{packed.name}` in `{parts.own.ref}` lacks its `{stem}_zero_point`: `config.json` says that codes are "
            "not symmetric"
        )
    if zero is not None:
        down = rows if zero.stored != "I32" else -(-rows * bits // WORD)
        if prod(zero.shape) != down * groups:
            raise parts.misfit(packed.name, zero.name, f"expected the zeros of {rows} rows in {groups} groups")

    def zeros(first: int, last: int) -> np.ndarray:
        assert zero is not None
        if zero.stored != "I32":
            return parts.floats(zero.name, first * groups, last * groups).reshape(-1, groups)
        low, high = first // WORD * bits, -(-last // WORD) * bits  # 32 rows lie in as many words as they have bits
        columnwise = parts.stored(zero.name).reshape(-1, groups)[low:high].T
        found = codes.unpacked(columnwise, bits, min(rows, -(-last // WORD) * WORD) - first // WORD * WORD).T
        return found[first % WORD :][: last - first].astype(np.float32) - offset

    def unpacked(first: int, last: int) -> np.ndarray:
        return codes.unpacked(rows_of_bytes(parts, packed.name, words)(first, last), bits, columns)

    one = by_rows(parts, scale.name, groups)
    numbers = _group_numbers(parts, f"{stem}_g_idx", columns, groups)
    decoder = Scaled(
        columns=columns,
        dtype=dtype,
        codes=rows_of_bytes(parts, packed.name, words) if bits == 4 else unpacked,
        table=codes.NUMBERS[: 16 if bits == 4 else 256] - np.float32(offset),
        scales=one if per_row else lambda first, last: np.broadcast_to(one(0, 1), (last - first, 1)),
        width=columns // groups if numbers is None else numbers,
        zeros=zeros if zero is not None else None,
    )
    beside = tuple(f"{stem}_{part}" for part in ("scale", "shape", "zero_point", "g_idx"))
    return parts.coded(
        stem,
        f"compressed-tensors int{bits}",
        decoder,
        shape=(rows, columns),
        dtype=scale.stored,
        codes=packed.name,
        beside=beside,
    )


def _bits_of(parts: StoredParts, packed: TensorInfo, columns: int) -> int:
    """Return the bits of a code: those of the configuration's that give the packed width."""
    fitting = [bits for bits in range(1, 9) if -(-columns * bits // WORD) == packed.shape[1]]
    said = {bits for bits in _said_values(parts.said, "num_bits") if bits in fitting} or set(fitting)
    if len(said) != 1:
        raise CheckpointError(
            f"`{packed.name}` in `{parts.own.ref}` packs {columns} columns into {packed.shape[1]} words, and "
            "`config.json` does not say of how many bits a code is"
        )
    return said.pop()


def _said_values(said: Any, key: str) -> set[int]:
    """Return the numbers that a configuration of codes has under a key, of weights: activations have their own."""
    if isinstance(said, Mapping):
        own = {value for name, value in said.items() if name == key and isinstance(value, int)}
        return own.union(*(_said_values(value, key) for name, value in said.items() if name not in ACTIVATIONS))
    return set()


def gptq(parts: StoredParts, packed: TensorInfo, scale: TensorInfo, zero: TensorInfo) -> Coded:
    """Return a weight of GPTQ: codes packed down the inputs, (inputs · bits / 32, outputs)."""
    stem = packed.name.rpartition(".")[0]
    groups, outputs = scale.shape
    bits = parts.said.get("bits")
    bits = bits if bits in (2, 3, 4, 8) else zero.shape[-1] * WORD // max(1, outputs)
    inputs = packed.shape[0] * WORD // max(1, bits)
    numbers = _group_numbers(parts, f"{stem}.g_idx", inputs, groups)
    fits = outputs == packed.shape[1] and zero.shape == (groups, outputs * bits // WORD)
    if bits not in (2, 3, 4, 8) or not fits or not groups or (numbers is None and inputs % groups):
        raise parts.misfit(packed.name, zero.name, f"not of {bits} bits for {groups} groups of [{outputs}, {inputs}]")
    if numbers is None and parts.said.get("desc_act"):
        raise CheckpointError(
            f"`{packed.name}` in `{parts.own.ref}` lacks its `{stem}.g_idx`: `config.json` says that columns are in "
            "another order (`desc_act`)"
        )
    dtype, mask = _float(parts, scale), (1 << bits) - 1
    # The first version of the format stores zeros less one, and what wraps around with it.
    more = 0 if parts.said.get("checkpoint_format") == "gptq_v2" else 1
    width = numbers if numbers is not None and _listed(numbers, inputs, groups) else inputs // groups

    def down(first: int, last: int) -> np.ndarray:
        columns = _turned(parts.stored(packed.name), first, last).view(np.uint8)
        return columns if bits == 4 else codes.unpacked(columns, bits, inputs)

    def zeros(first: int, last: int) -> np.ndarray:
        low, high = first // WORD * bits, -(-last // WORD) * bits
        count = min(outputs, -(-last // WORD) * WORD) - first // WORD * WORD
        found = codes.unpacked(parts.stored(zero.name)[:, low:high], bits, count)
        return ((found[:, first % WORD :][:, : last - first] + more) & mask).T.astype(np.float32)

    decoder = Scaled(
        columns=inputs,
        dtype=dtype,
        codes=down,
        table=codes.NUMBERS[: 16 if bits == 4 else 256],
        scales=_of_columns(parts, scale),
        width=width,
        zeros=zeros,
    )
    return parts.coded(
        f"{stem}.weight",
        f"GPTQ int{bits}",
        decoder,
        shape=(outputs, inputs),
        dtype=scale.stored,
        codes=packed.name,
        beside=(scale.name, zero.name, f"{stem}.g_idx"),
        in_order=False,
    )


def _listed(numbers: np.ndarray, columns: int, groups: int) -> bool:
    """Return whether groups are anything but runs of equal length."""
    return columns % groups != 0 or not np.array_equal(numbers, np.arange(columns) // (columns // groups))


def _turned(words: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return columns `first … last − 1` of a matrix as rows."""
    words, height, stride = np.ascontiguousarray(words), *words.shape
    assert 0 <= first <= last <= stride
    found = np.empty((last - first, height), words.dtype)
    assert words.dtype.itemsize == found.dtype.itemsize == WORD // 8
    if found.size:
        TURNED((), address(words), address(found), first, last - first, height, stride)
    return found


def _of_columns(parts: StoredParts, scale: TensorInfo) -> Rows:
    return lambda first, last: parts.stored(scale.name)[:, first:last].T.astype(np.float32)


def awq(parts: StoredParts, packed: TensorInfo, scale: TensorInfo, zero: TensorInfo) -> Coded:
    """Return a weight of AWQ, as its GEMM kernel has it: 4-bit codes packed across the outputs, out of order."""
    stem = packed.name.rpartition(".")[0]
    groups, outputs = scale.shape
    inputs = packed.shape[0]
    if packed.shape[1] * 8 != outputs or zero.shape != (groups, packed.shape[1]) or not groups or inputs % groups:
        raise parts.misfit(packed.name, zero.name, f"not of 4 bits for {groups} groups of [{outputs}, {inputs}]")
    dtype = _float(parts, scale)

    def unpacked(name: str, first: int, last: int) -> np.ndarray:
        low = first // 8
        words = _turned(parts.stored(name), low, -(-last // 8))
        found = np.empty((8 * len(words), words.shape[1]), np.uint8)
        PLANES((), address(words), address(found), address(AWQ_PLACES), *words.shape)
        return found[first - 8 * low : last - 8 * low]

    decoder = Scaled(
        columns=inputs,
        dtype=dtype,
        codes=lambda first, last: unpacked(packed.name, first, last),
        table=codes.NUMBERS,
        scales=_of_columns(parts, scale),
        width=inputs // groups,
        zeros=lambda first, last: unpacked(zero.name, first, last),
    )
    return parts.coded(
        f"{stem}.weight",
        "AWQ int4",
        decoder,
        shape=(outputs, inputs),
        dtype=scale.stored,
        codes=packed.name,
        beside=(scale.name, zero.name),
        in_order=False,
    )


def mlx(parts: StoredParts, packed: TensorInfo, scale: TensorInfo, bias: TensorInfo) -> Coded | None:
    """Return a weight of MLX's affine mode: `scale · code + bias`; None where the configuration does not say how."""
    stem = packed.name.rpartition(".")[0]
    own = parts.said.get(stem)
    said = {**parts.said, **(own if isinstance(own, Mapping) else {})}
    bits, group = said.get("bits"), said.get("group_size")
    if not isinstance(bits, int) or not isinstance(group, int) or said.get("mode", "affine") != "affine":
        return None
    words, groups = packed.shape[-1], scale.shape[-1] if scale.shape else 0
    columns = groups * group
    fits = scale.shape == bias.shape and scale.shape[:-1] == packed.shape[:-1]
    if not fits or not 1 <= bits <= 8 or columns * bits != words * WORD:
        raise parts.misfit(packed.name, scale.name, f"not of {bits} bits in groups of {group}")
    dtype = _float(parts, scale)

    def unpacked(first: int, last: int) -> np.ndarray:
        return codes.unpacked(rows_of_bytes(parts, packed.name, words)(first, last), bits, columns)

    decoder = Scaled(
        columns=columns,
        dtype=dtype,
        codes=rows_of_bytes(parts, packed.name, words) if bits == 4 else unpacked,
        table=codes.NUMBERS[: 16 if bits == 4 else 256],
        scales=by_rows(parts, scale.name, groups),
        width=group,
        biases=by_rows(parts, bias.name, groups),
    )
    return parts.coded(
        packed.name,
        f"MLX int{bits}",
        decoder,
        shape=(*packed.shape[:-1], columns),
        dtype=scale.stored,
        codes=packed.name,
        beside=(scale.name, bias.name),
    )
