"""Stored elements to float32 and back, in registers.

Numba knows neither bfloat16 nor, on the CPU, float16. Kernels see bfloat16 as uint16, float16 as int16 and float32 as
itself, and are compiled for each; rounding is to nearest, ties to even, as NumPy's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, overload

from .compiler import inlined

u8, u16, i16, u32, i32, u64 = np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.uint64
f32, f64 = np.float32, np.float64


def _bit_cast(source: Any, target: Any, llvm_type: ir.Type) -> Any:
    """Return a function, for kernels only, that takes the bits of a `source` for a `target`."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], llvm_type)

    def cast(typing_context: Any, x: Any):  # noqa: ARG001 (Numba's calling convention)
        return target(source), generate

    return intrinsic(cast)


def _built(function: Callable[..., Any]) -> Any:
    """Return what kernels call of a function that is given the types, and returns a signature and what builds it."""
    return intrinsic(function)


LANES = 32  # bytes that `mask_from` looks at
# What puts 16 bytes in an order, by what a processor has; without either it is done byte by byte.
SHUFFLES = {"ssse3": "llvm.x86.ssse3.pshuf.b.128", "neon": "llvm.aarch64.neon.tbl1.v16i8"}


@_built
def mask_from(typing_context: Any, data: Any, first: Any, least: Any):  # noqa: ARG001
    """Return a bit for each of `LANES` bytes at `first`, the first one's lowest: whether it is `least` or more."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(ir.IntType(8), LANES)
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), lanes.as_pointer())
        found = builder.load(place)
        found.align = 1
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), arguments[2], ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
        all_of_them = builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), zeros)
        return builder.bitcast(builder.icmp_unsigned(">=", found, all_of_them), ir.IntType(LANES))

    return types.uint32(types.CPointer(types.uint8), types.uint64, types.uint8), generate


@_built
def lowest_bit(typing_context: Any, mask: Any):  # noqa: ARG001
    """Return the number of the lowest bit that is set; 32 where none is."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.uint32(types.uint32), generate


@_built
def num_bits(typing_context: Any, mask: Any):  # noqa: ARG001
    """Return how many bits are set."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint32(types.uint32), generate


@_built
def reorder(typing_context: Any, data: Any, first: Any, orders: Any, order: Any, out: Any, place: Any):  # noqa: ARG001
    """Put eight of the bytes at `first` in the order of the eight numbers at `order`, 0 for one of 128, at `place`."""

    features = llvm.get_host_cpu_features()

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        lanes, whole = (ir.VectorType(ir.IntType(8), count) for count in (8, 16))
        places = [
            builder.bitcast(builder.gep(pointer, [at]), lanes.as_pointer())
            for pointer, at in zip(arguments[::2], arguments[1::2], strict=True)
        ]
        loaded = [builder.load(pointer) for pointer in places[:2]]
        for found in loaded:
            found.align = 1
        name = next((name for feature, name in SHUFFLES.items() if features.get(feature)), None)
        if name is not None:
            both = [ir.Constant(ir.VectorType(ir.IntType(32), 16), [*range(8), *range(8)])] * 2
            wide = [builder.shuffle_vector(found, found, order) for found, order in zip(loaded, both, strict=True)]
            call = get_or_insert_function(builder.module, ir.FunctionType(whole, [whole, whole]), name)
            first_half = ir.Constant(ir.VectorType(ir.IntType(32), 8), list(range(8)))
            result = builder.call(call, wide)
            result = builder.shuffle_vector(result, result, first_half)
        else:
            result = ir.Constant(lanes, [0] * 8)
            for k in range(8):
                at, number = builder.extract_element(loaded[1], ir.IntType(32)(k)), ir.IntType(8)
                byte = builder.extract_element(loaded[0], builder.and_(at, number(7)))
                byte = builder.select(builder.icmp_unsigned("<", at, number(128)), byte, number(0))
                result = builder.insert_element(result, byte, ir.IntType(32)(k))
        builder.store(result, places[2]).align = 1
        return context.get_dummy_value()

    u8s = types.CPointer(types.uint8)
    return types.void(u8s, types.uint64, u8s, types.uint64, u8s, types.uint64), generate


bits_of = _bit_cast(types.float32, types.uint32, ir.IntType(32))
float_of = _bit_cast(types.uint32, types.float32, ir.FloatType())


@inlined
def _from_bfloat16(x):
    return float_of(u32(u32(x) << u32(16)))


@inlined
def _from_float16(x):
    half = u32(u16(x))
    magnitude = u32(u32(half & u32(0x7FFF)) << u32(13))
    # Bias and, by the way, subnormals: the exponent is 112 too small.
    scaled = bits_of(float_of(magnitude) * f32(2.0**112))
    if magnitude >= u32(0x0F800000):  # infinity and NaN
        scaled = u32(magnitude | u32(0x7F800000))
    return float_of(u32(scaled | u32(u32(half & u32(0x8000)) << u32(16))))


@inlined
def _to_bfloat16(x):
    """Round. A NaN may become anything: the figures of its tensor tell of it."""
    bits = bits_of(x)
    return u16(u32(bits + u32(0x7FFF) + u32(u32(bits >> u32(16)) & u32(1))) >> u32(16))


@inlined
def _to_float16(x):
    bits = bits_of(x)
    sign = u32(u32(bits >> u32(16)) & u32(0x8000))
    magnitude = u32(bits & u32(0x7FFFFFFF))
    odd = u32(u32(magnitude >> u32(13)) & u32(1))
    half = u32(u32(magnitude - u32(0x38000000) + u32(0xFFF) + odd) >> u32(13))
    if magnitude < u32(0x38800000):  # subnormal: adding 0.5 rounds at its last place, 2⁻²⁴
        half = u32(bits_of(float_of(magnitude) + f32(0.5)) - u32(0x3F000000))
    if magnitude >= u32(0x47800000):  # 65536 and more, infinity and NaN
        half = u32(0x7C00)
    if magnitude > u32(0x7F800000):
        half = u32(0x7E00)
    return i16(u16(half | sign))


def fitted(x: Any, like: Any) -> Any:
    """Return the lowest bits of a whole number, as many as `like` has."""
    raise NotImplementedError(f"compiled only, got {x} for {like}")


@overload(fitted)
def _fitted(x, like):  # noqa: ARG001
    if like == types.uint8:
        return lambda x, like: u8(x)  # noqa: ARG005
    if like == types.uint16:
        return lambda x, like: u16(x)  # noqa: ARG005
    return lambda x, like: u32(x)  # noqa: ARG005


def decoded(x: Any) -> Any:
    """Return a stored element as float32."""
    raise NotImplementedError(f"compiled only, got {x}")


def encoded(x: Any, like: Any) -> Any:
    """Return a float32 rounded to the dtype of the stored element `like`."""
    raise NotImplementedError(f"compiled only, got {x} for {like}")


@overload(decoded)
def _decoded(x):
    if x == types.uint16:
        return lambda x: _from_bfloat16(x)
    if x == types.int16:
        return lambda x: _from_float16(x)
    return lambda x: x


@overload(encoded)
def _encoded(x, like):  # noqa: ARG001
    if like == types.uint16:
        return lambda x, like: _to_bfloat16(x)  # noqa: ARG005
    if like == types.int16:
        return lambda x, like: _to_float16(x)  # noqa: ARG005
    return lambda x, like: x  # noqa: ARG005
