"""How fast codes of each format are decoded: GB of decoded bfloat16 or float16 a second of one core, best of several.

    python benchmarks/decode.py

Tensors are 1024 × 4096, in memory; what is timed is what a fuse reads: tiles of 131,072 elements, one after the other.
A plain copy of bfloat16 stands beside, for what the machine does otherwise. Blocks of GGUF are decoded as many at once.
"""

from __future__ import annotations

import json
from time import thread_time

import ml_dtypes
import numpy as np
from sculpt.fusion.checkpoint import MemorySource
from sculpt.fusion.checkpoint.coded.source import decoded
from sculpt.fusion.checkpoint.gguf.blocks import TYPES, decode

ROWS, COLUMNS, TILE, TIMES = 1024, 4096, 1 << 17, 15
RANDOM = np.random.default_rng(0)
BF16, E4M3, E8M0 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu


def numbers(dtype: object, *shape: int) -> np.ndarray:
    return RANDOM.integers(0, 120, shape).astype(np.uint8).view(dtype)


def words(dtype: str, *shape: int) -> np.ndarray:
    return RANDOM.integers(0, 2**31, shape).astype(dtype)


def floats(dtype: object, *shape: int) -> np.ndarray:
    return RANDOM.random(shape).astype(dtype)


STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLUMNS]}
GPTQ = {"quant_method": "gptq", "bits": 4}
FORMATS: dict[str, tuple[dict[str, np.ndarray], dict[str, object]]] = {
    "bfloat16, copied": ({"w.weight": floats(BF16, ROWS, COLUMNS)}, {}),
    "FP8, blocks of 128 × 128": (
        {"w.weight": numbers(E4M3, ROWS, COLUMNS), "w.weight_scale_inv": floats("f4", ROWS // 128, COLUMNS // 128)},
        {},
    ),
    "FP8, a scale for each row": (
        {"w.weight": numbers(E4M3, ROWS, COLUMNS), "w.weight_scale": floats(BF16, ROWS, 1)},
        {},
    ),
    "FP8, one scale": ({"w.weight": numbers(E4M3, ROWS, COLUMNS), "w.weight_scale": floats(BF16, 1)}, {}),
    "MXFP4, gpt-oss": (
        {
            "e.down_proj_blocks": numbers("u1", 1, ROWS, COLUMNS // 32, 16),
            "e.down_proj_scales": numbers("u1", 1, ROWS, COLUMNS // 32),
        },
        {},
    ),
    "MXFP4, rows": (
        {"w.weight": numbers("i1", ROWS, COLUMNS // 2), "w.scale": numbers(E8M0, ROWS, COLUMNS // 32)},
        {},
    ),
    "NVFP4": (
        {
            "w.weight_packed": numbers("u1", ROWS, COLUMNS // 2),
            "w.weight_scale": numbers(E4M3, ROWS, COLUMNS // 16),
            "w.weight_global_scale": floats("f4", 1),
        },
        {},
    ),
    "compressed-tensors int4, groups of 128": (
        {
            "w.weight_packed": words("i4", ROWS, COLUMNS // 8),
            "w.weight_scale": floats(BF16, ROWS, COLUMNS // 128),
            "w.weight_shape": np.array([ROWS, COLUMNS]),
        },
        {},
    ),
    "compressed-tensors int8, a scale for each row": (
        {"w.weight": numbers("i1", ROWS, COLUMNS), "w.weight_scale": floats(BF16, ROWS, 1)},
        {},
    ),
    "GPTQ int4, groups of 128": (
        {
            "w.qweight": words("i4", COLUMNS // 8, ROWS),
            "w.qzeros": words("i4", COLUMNS // 128, ROWS // 8),
            "w.scales": floats("f2", COLUMNS // 128, ROWS),
        },
        {"quantization_config": GPTQ},
    ),
    "GPTQ int4, groups of 128, `desc_act`": (
        {
            "w.qweight": words("i4", COLUMNS // 8, ROWS),
            "w.qzeros": words("i4", COLUMNS // 128, ROWS // 8),
            "w.scales": floats("f2", COLUMNS // 128, ROWS),
            "w.g_idx": RANDOM.permutation(np.arange(COLUMNS, dtype="i4") // 128),
        },
        {"quantization_config": GPTQ},
    ),
    "GPTQ int3, groups of 128": (
        {
            "w.qweight": words("i4", COLUMNS * 3 // 32, ROWS),
            "w.qzeros": words("i4", COLUMNS // 128, ROWS * 3 // 32),
            "w.scales": floats("f2", COLUMNS // 128, ROWS),
        },
        {"quantization_config": {**GPTQ, "bits": 3}},
    ),
    "AWQ int4, groups of 128": (
        {
            "w.qweight": words("i4", COLUMNS, ROWS // 8),
            "w.qzeros": words("i4", COLUMNS // 128, ROWS // 8),
            "w.scales": floats("f2", COLUMNS // 128, ROWS),
        },
        {},
    ),
    "bitsandbytes NF4": (
        {
            "w.weight": numbers("u1", ROWS * COLUMNS // 2, 1),
            "w.weight.absmax": floats("f4", ROWS * COLUMNS // 64),
            "w.weight.quant_map": floats("f4", 16),
            "w.weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(STATE).encode(), np.uint8),
        },
        {},
    ),
    "bitsandbytes NF4, double quantisation": (
        {
            "w.weight": numbers("u1", ROWS * COLUMNS // 2, 1),
            "w.weight.absmax": numbers("u1", ROWS * COLUMNS // 64),
            "w.weight.quant_map": floats("f4", 16),
            "w.weight.nested_absmax": floats("f4", ROWS * COLUMNS // 64 // 256),
            "w.weight.nested_quant_map": floats("f4", 256),
            "w.weight.quant_state.bitsandbytes__nf4": np.frombuffer(
                json.dumps({**STATE, "nested_blocksize": 256, "nested_offset": 0.5}).encode(), np.uint8
            ),
        },
        {},
    ),
    "bitsandbytes int8, to float32": (
        {"w.weight": numbers("i1", ROWS, COLUMNS), "w.SCB": floats("f4", ROWS)},
        {},
    ),
    "MLX int4, groups of 64": (
        {
            "w.weight": words("u4", ROWS, COLUMNS // 8),
            "w.scales": floats(BF16, ROWS, COLUMNS // 64),
            "w.biases": floats(BF16, ROWS, COLUMNS // 64),
        },
        {"quantization": {"bits": 4, "group_size": 64}},
    ),
    "MLX int6, groups of 64": (
        {
            "w.weight": words("u4", ROWS, COLUMNS * 6 // 32),
            "w.scales": floats(BF16, ROWS, COLUMNS // 64),
            "w.biases": floats(BF16, ROWS, COLUMNS // 64),
        },
        {"quantization": {"bits": 6, "group_size": 64}},
    ),
}
GGUF = ("Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def seconds(tensors: dict[str, np.ndarray], config: dict[str, object]) -> float:
    source = decoded(MemorySource(tensors, config=config))
    ((name, info),) = source.tensors.items()
    out = np.empty(TILE, info.kind.numpy)
    began = thread_time()
    for start in range(0, info.num_elements, TILE):
        out[:] = source.read(name, start, start + TILE)
    return thread_time() - began


def seconds_of_blocks(name: str) -> float:
    kind = next(kind for kind in TYPES.values() if kind.name == name)
    blocks = numbers("u1", ROWS * COLUMNS // kind.elements, kind.nbytes)
    out, step = np.empty((TILE // kind.elements, kind.elements), BF16), TILE // kind.elements
    began = thread_time()
    for start in range(0, len(blocks), step):
        decode(kind, blocks[start : start + step], out)
    return thread_time() - began


def main() -> None:
    tried = {kind: lambda given=given: seconds(*given) for kind, given in FORMATS.items()}
    tried |= {f"GGUF {name}": lambda name=name: seconds_of_blocks(name) for name in GGUF}
    for kind, run in tried.items():
        best = min(run() for _ in range(TIMES))
        speed = 2 * ROWS * COLUMNS / best / 1e9
        print(f"{kind:48s} {speed:6.2f} GB/s  {best * 1e9 / ROWS / COLUMNS:6.2f} ns an element", flush=True)


if __name__ == "__main__":
    main()
