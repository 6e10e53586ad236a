"""The dtypes that checkpoints store: safetensors code, size, NumPy form."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True, kw_only=True)
class DType:
    """One stored dtype. `numpy` is None where an element is less than a byte: no arithmetic is offered."""

    code: str  # as in a safetensors header
    torch: str  # attribute of the torch module
    bits: int
    numpy: np.dtype | None
    fusible: bool = False  # a float that methods compute with; other dtypes are copied or refused


def _dtype(code: str, torch: str, bits: int, numpy: object, *, fusible: bool = False) -> DType:
    return DType(
        code=code,
        torch=torch,
        bits=bits,
        numpy=None if numpy is None else np.dtype(numpy),  # pyright: ignore[reportArgumentType, reportCallIssue]
        fusible=fusible,
    )


DTYPES = {
    dtype.code: dtype
    for dtype in (
        _dtype("F64", "float64", 64, np.float64, fusible=True),
        _dtype("F32", "float32", 32, np.float32, fusible=True),
        _dtype("F16", "float16", 16, np.float16, fusible=True),
        _dtype("BF16", "bfloat16", 16, ml_dtypes.bfloat16, fusible=True),
        _dtype("I64", "int64", 64, np.int64),
        _dtype("I32", "int32", 32, np.int32),
        _dtype("I16", "int16", 16, np.int16),
        _dtype("I8", "int8", 8, np.int8),
        _dtype("U64", "uint64", 64, np.uint64),
        _dtype("U32", "uint32", 32, np.uint32),
        _dtype("U16", "uint16", 16, np.uint16),
        _dtype("U8", "uint8", 8, np.uint8),
        _dtype("BOOL", "bool", 8, np.bool_),
        _dtype("F8_E4M3", "float8_e4m3fn", 8, ml_dtypes.float8_e4m3fn),
        _dtype("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, ml_dtypes.float8_e4m3fnuz),
        _dtype("F8_E5M2", "float8_e5m2", 8, ml_dtypes.float8_e5m2),
        _dtype("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, ml_dtypes.float8_e5m2fnuz),
        _dtype("F8_E8M0", "float8_e8m0fnu", 8, ml_dtypes.float8_e8m0fnu),
        _dtype("F4", "float4_e2m1fn_x2", 4, None),
        _dtype("F6_E2M3", "float6_e2m3fn", 6, None),
        _dtype("F6_E3M2", "float6_e3m2fn", 6, None),
        _dtype("C64", "complex64", 64, np.complex64),
    )
}

BY_TORCH_NAME = {dtype.torch: dtype for dtype in DTYPES.values()}
BY_NUMPY = {dtype.numpy: dtype for dtype in DTYPES.values() if dtype.numpy is not None}
# What people write for them, in lower case.
SHORT = {
    **{"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16"},
    **{"fp32": "float32", "f32": "float32", "single": "float32", "float": "float32"},
    **{"fp64": "float64", "f64": "float64", "double": "float64"},
}
