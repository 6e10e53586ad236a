"""What a fuse of a very large model takes before it reads a weight: CPU seconds of each phase, memory, the manifest.

    python benchmarks/scale.py                     # every model, each in a process of its own
    python benchmarks/scale.py deepseek-v3         # one of them
    python benchmarks/scale.py many                # 96,000 small tensors in 48 shards, fused for real

Shapes are those of the published configurations; files are sparse, so that a model of a terabyte takes a few
megabytes of disk. Base and tuned are two folders of the same shapes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
BLOCK = 128  # of FP8

Tensor = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def llama(hidden: int, layers: int, inner: int, heads: int, kv_heads: int, vocabulary: int) -> Iterator[Tensor]:
    head = hidden // heads
    yield "model.embed_tokens.weight", "BF16", (vocabulary, hidden)
    for layer in range(layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, inner),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.k_proj": (kv_heads * head, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.v_proj": (kv_heads * head, hidden),
        }.items():
            yield f"model.layers.{layer}.{name}.weight", "BF16", shape
    yield "lm_head.weight", "BF16", (vocabulary, hidden)
    yield "model.norm.weight", "BF16", (hidden,)


def latent_attention(
    layers: int, experts: int, dense: int, heads: int, vocabulary: int, inner: int, *, fp8: bool
) -> Iterator[Tensor]:
    """Yield a mixture as DeepSeek-V3's `config.json` describes it: hidden 7168, experts of 2048."""
    hidden, expert, query, latent, rope = 7168, 2048, 1536, 512, 64

    def linear(name: str, *shape: int) -> Iterator[Tensor]:
        yield f"{name}.weight", "F8_E4M3" if fp8 else "BF16", shape
        if fp8:
            yield f"{name}.weight_scale_inv", "F32", tuple(-(-size // BLOCK) for size in shape)

    def mlp(name: str, width: int) -> Iterator[Tensor]:
        yield from linear(f"{name}.down_proj", hidden, width)
        yield from linear(f"{name}.gate_proj", width, hidden)
        yield from linear(f"{name}.up_proj", width, hidden)

    yield "model.embed_tokens.weight", "BF16", (vocabulary, hidden)
    for layer in range(layers):
        own = f"model.layers.{layer}"
        for norm, width in (("input", hidden), ("post_attention", hidden)):
            yield f"{own}.{norm}_layernorm.weight", "BF16", (width,)
        yield f"{own}.self_attn.q_a_layernorm.weight", "BF16", (query,)
        yield f"{own}.self_attn.kv_a_layernorm.weight", "BF16", (latent,)
        yield from linear(f"{own}.self_attn.q_a_proj", query, hidden)
        yield from linear(f"{own}.self_attn.q_b_proj", heads * (128 + rope), query)
        yield from linear(f"{own}.self_attn.kv_a_proj_with_mqa", latent + rope, hidden)
        yield from linear(f"{own}.self_attn.kv_b_proj", heads * 256, latent)
        yield from linear(f"{own}.self_attn.o_proj", hidden, heads * 128)
        if layer < dense:
            yield from mlp(f"{own}.mlp", inner)
            continue
        yield f"{own}.mlp.gate.weight", "BF16", (experts, hidden)
        yield f"{own}.mlp.gate.e_score_correction_bias", "F32", (experts,)
        yield from mlp(f"{own}.mlp.shared_experts", expert)
        for index in range(experts):
            yield from mlp(f"{own}.mlp.experts.{index}", expert)
    yield "lm_head.weight", "BF16", (vocabulary, hidden)
    yield "model.norm.weight", "BF16", (hidden,)


def small(count: int) -> Iterator[Tensor]:
    for index in range(count):
        yield f"model.layers.{index // 800}.mlp.experts.{index % 800}.up_proj.weight", "BF16", (16, 16)


def models() -> dict[str, tuple[Iterator[Tensor], int]]:
    """Return tensors and number of shards: those that the hub has."""
    return {
        "llama-3.1-405b": (llama(16384, 126, 53248, 128, 8, 128256), 191),
        "deepseek-v3": (latent_attention(61, 256, 3, 128, 129280, 18432, fp8=True), 163),
        "deepseek-v3-bf16": (latent_attention(61, 256, 3, 128, 129280, 18432, fp8=False), 163),
        "kimi-k2": (latent_attention(61, 384, 1, 64, 163840, 18432, fp8=True), 61),
        "many": (small(96_000), 48),
    }


def write(folder: Path, tensors: list[Tensor], num_shards: int) -> None:
    """Write sparse shards and their index."""
    folder.mkdir()
    weight_map = {}
    for number in range(num_shards):
        own = tensors[number * len(tensors) // num_shards : (number + 1) * len(tensors) // num_shards]
        file = folder / f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        entries, end = {}, 0
        for name, dtype, shape in sorted(own, key=lambda tensor: -BYTES[tensor[1]]):
            start, end = end, end + prod(shape) * BYTES[dtype]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
            weight_map[name] = file.name
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with file.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.truncate(8 + len(header) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def measure(kind: str) -> None:
    tensors, num_shards = models()[kind]
    with TemporaryDirectory() as place:
        listed = list(tensors)
        for side in ("base", "tuned"):
            write(Path(place) / side, listed, num_shards)
        size = sum(prod(shape) * BYTES[dtype] for _, dtype, shape in listed)
        print(f"{kind}: {len(listed):,} tensors, {size / 1e12:.2f} TB, {num_shards} shards", flush=True)
        subprocess.run([sys.executable, __file__, "--in", place, "--fuse" if kind == "many" else "--plan"], check=True)


def look(place: Path, *, fuse: bool) -> None:
    from sculpt.fusion.checkpoint import open_checkpoint
    from sculpt.fusion.methods.dare import Dare
    from sculpt.fusion.plan.plan import make_plan
    from sculpt.fusion.run.fuse import execute
    from sculpt.fusion.run.prepared import prepare

    began = process_time()
    if fuse:
        prepared = prepare(place / "base", [place / "tuned"], output=place / "out", method=Dare(sparsity=0.5))
        tell("prepare", began)
        began = process_time()
        execute(prepared)
        tell("run", began)
        files = sorted((place / "out").glob("sculpt-manifest*"))
        for file in files:
            print(f"  {file.name}: {file.stat().st_size / 1e6:.1f} MB")
        return
    sources = [open_checkpoint(place / side) for side in ("base", "tuned")]
    tell("open", began)
    began = process_time()
    method = Dare(sparsity=0.5)
    plan = make_plan(sources, lambda _: method)
    tell("plan", began)
    began = process_time()
    _ = [source.fingerprint for source in sources]
    tell("fingerprints", began)
    print(f"  {len(plan.steps):,} steps, {plan.bytes_read / 1e12:.2f} TB to read, {plan.bytes_written / 1e12:.2f} out")


def tell(what: str, began: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"  {what:13s} {process_time() - began:6.2f} CPU s, peak {peak:6.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[[], *models()])
    parser.add_argument("--in", dest="place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fuse", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.place is not None:
        look(given.place, fuse=given.fuse)
        return
    for kind in given.kinds or models():
        measure(kind)


if __name__ == "__main__":
    main()
