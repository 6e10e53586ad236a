"""Make a Llama-shaped base and a fine-tune of it from random numbers: no download, no torch.

    python benchmarks/llama_pair.py --size 1.1b --out ckpt/1.1b

Weights are normal with standard deviation 0.02, norms are 1; the fine-tune adds normal deltas of 5 % (`--delta`) of
each tensor's standard deviation, rounded to the storage dtype, so that some deltas vanish as they do in practice. With
1 % a patch of it takes 3.9 bits a weight, where one of a fine-tune of SmolLM2 takes 3.4.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

CODES = {"bfloat16": ("BF16", ml_dtypes.bfloat16), "float16": ("F16", np.float16), "float32": ("F32", np.float32)}
STD = 0.02
DELTA = 0.05
PIECE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Size:
    """The shape of a Llama."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False  # the output head is the embedding


SIZES = {
    "tiny": Size(hidden=256, layers=4, intermediate=704, heads=8, kv_heads=2, vocabulary=2000),
    "0.135b": Size(hidden=576, layers=30, intermediate=1536, heads=9, kv_heads=3, vocabulary=49152, tied=True),
    "0.15b": Size(hidden=768, layers=16, intermediate=2048, heads=12, kv_heads=4, vocabulary=32000),
    "1.1b": Size(hidden=2048, layers=22, intermediate=5632, heads=32, kv_heads=4, vocabulary=32000),
    "2.4b": Size(hidden=3072, layers=22, intermediate=8192, heads=24, kv_heads=8, vocabulary=32000),
    "4b": Size(hidden=3072, layers=37, intermediate=8192, heads=24, kv_heads=8, vocabulary=32000),
    # Small tensors: 1,002 and 49,998 of them.
    "1k": Size(hidden=64, layers=111, intermediate=176, heads=4, kv_heads=2, vocabulary=1000),
    "50k": Size(hidden=64, layers=5555, intermediate=176, heads=4, kv_heads=2, vocabulary=1000),
}


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the model in the order in which transformers stores them: by name."""
    kv = size.hidden // size.heads * size.kv_heads
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (size.vocabulary, size.hidden),
        **({} if size.tied else {"lm_head.weight": (size.vocabulary, size.hidden)}),
        "model.norm.weight": (size.hidden,),
    }
    for layer in range(size.layers):
        block = f"model.layers.{layer}"
        found |= {
            f"{block}.self_attn.q_proj.weight": (size.hidden, size.hidden),
            f"{block}.self_attn.k_proj.weight": (kv, size.hidden),
            f"{block}.self_attn.v_proj.weight": (kv, size.hidden),
            f"{block}.self_attn.o_proj.weight": (size.hidden, size.hidden),
            f"{block}.mlp.gate_proj.weight": (size.intermediate, size.hidden),
            f"{block}.mlp.up_proj.weight": (size.intermediate, size.hidden),
            f"{block}.mlp.down_proj.weight": (size.hidden, size.intermediate),
            f"{block}.input_layernorm.weight": (size.hidden,),
            f"{block}.post_attention_layernorm.weight": (size.hidden,),
        }
    return dict(sorted(found.items()))


def config(size: Size, dtype: str) -> dict[str, object]:
    """Return `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.intermediate,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": size.tied,
        "torch_dtype": dtype,
    }


def _pieces(
    shape: tuple[int, ...], rng: np.random.Generator, dtype: type, delta_std: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, prod(shape), PIECE):
        count = min(PIECE, prod(shape) - start)
        if len(shape) == 1:
            base = np.ones(count, np.float32)
        else:
            base = rng.standard_normal(count, np.float32) * np.float32(STD)
        stored = base.astype(dtype)
        delta = rng.standard_normal(count, np.float32) * np.float32(delta_std * STD)
        yield stored, (stored.astype(np.float32) + delta).astype(dtype)


def _groups(found: dict[str, tuple[int, ...]], itemsize: int, shard_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in found.items():
        nbytes = prod(shape) * itemsize
        if groups[-1] and filled + nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += nbytes
    return groups


def make_pair(
    out: Path,
    size: Size,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = 500_000_000,
    seed: int = 0,
    delta: float = DELTA,
) -> int:
    """Write `out/base` and `out/sft`; return the number of parameters."""
    code, storage = CODES[dtype]
    itemsize = np.dtype(storage).itemsize
    found = shapes(size)
    groups = _groups(found, itemsize, shard_bytes)
    rng = np.random.default_rng(seed)
    sides = out / "base", out / "sft"
    for side in sides:
        side.mkdir(parents=True, exist_ok=True)
        (side / "config.json").write_text(json.dumps(config(size, dtype), indent=2))
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name in group:
            nbytes = prod(found[name]) * itemsize
            entries[name] = {
                "dtype": code,
                "shape": list(found[name]),
                "data_offsets": [position, position + nbytes],
            }
            position += nbytes
            weight_map[name] = file
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with (sides[0] / file).open("wb") as base, (sides[1] / file).open("wb") as tuned:
            for stream in (base, tuned):
                stream.write(len(header).to_bytes(8, "little") + header)
            for name in group:
                for pair in _pieces(found[name], rng, storage, delta):
                    for stream, piece in zip((base, tuned), pair, strict=True):
                        stream.write(piece.view(np.uint8).data)
    if len(groups) > 1:
        total = sum(map(prod, found.values())) * itemsize
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        for side in sides:
            (side / "model.safetensors.index.json").write_text(index)
    return sum(map(prod, found.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=CODES, default="bfloat16")
    parser.add_argument("--shard-bytes", type=int, default=500_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delta", type=float, default=DELTA)
    options = parser.parse_args()
    count = make_pair(
        options.out,
        SIZES[options.size],
        dtype=options.dtype,
        shard_bytes=options.shard_bytes,
        seed=options.seed,
        delta=options.delta,
    )
    print(f"{count / 1e9:.3f} B parameters in {options.out}")


if __name__ == "__main__":
    main()
