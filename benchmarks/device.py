"""What a GPU does for the fuse and the calibration, and whether its bits are those of the CPU.

    python benchmarks/device.py --device cuda

1. Kernels: a tile of bfloat16 on the device, one pass or map; GB/s of what must be read and written (base, fine-tune,
   output), beside a copy on the device, and beside the definitions, which torch runs operation by operation.
2. Products: Σx·xᵀ in float32 and in float64.
3. Fuse: whole runs with a diagonal Hessian on CPU kernels and on the device, digests compared; `--protect` likewise.
4. Calibration of a random Llama: seconds beside one plain forward of the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_pair import SIZES, make_pair
from ml_dtypes import bfloat16
from sculpt.fusion.arithmetic.passes import Map, Pass
from sculpt.fusion.arithmetic.per_element import Repeated
from sculpt.fusion.arithmetic.random import tensor_key
from sculpt.fusion.arithmetic.tile import RawTile
from sculpt.fusion.methods import adadare, dare
from sculpt.fusion.run.backend import TorchBackend
from sculpt.fusion.transforms.scale import add_scaled

ROWS, WIDTH = 8192, 4096  # of the tile


def seconds(function: Callable[[], Any], runs: int = 7) -> float:
    """Return the median time of a call on a device that works in its own time."""
    found = []
    for turn in range(runs + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        if turn >= 2:
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def kernels(device: str) -> None:
    """Print the speed of each kernel and of its definition."""
    count = ROWS * WIDTH
    backend, rng = TorchBackend(device), np.random.default_rng(0)
    base = rng.standard_normal(count, np.float32).astype(bfloat16)
    tuned = (base.astype(np.float32) + 0.01 * rng.standard_normal(count, np.float32)).astype(bfloat16)
    root = Repeated(values=rng.random(WIDTH, np.float32) + 1, repeat=ROWS, inner=WIDTH)
    tile = RawTile(start=0, base=base, tuned=(tuned,), keys=(tensor_key(0, "x"),), root=root)
    stored, decoded = backend._stored(tile), backend._decode(tile)
    out = torch.empty(count, dtype=torch.bfloat16, device=device)
    source = torch.empty(count * 4, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    print(f"copy on the device: {2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9:.0f} GB/s")
    work: list[tuple[str, Pass | Map, int]] = [
        ("score pass", Pass(function=adadare.score_sums), 4),
        ("clipped pass", Pass(function=adadare.clipped_sums, arguments=(30.0,)), 4),
        ("AdaDARE map", Map(function=adadare.drop_and_rescale, arguments=(8.0, 0.5)), 6),
        ("DARE map", Map(function=dare.drop_and_rescale, arguments=(0.1, 1.0)), 6),
        ("task arithmetic map", Map(function=add_scaled, arguments=(0.5,)), 6),
    ]
    for name, wanted, each in work:
        kernel = backend._kernel(wanted, tile)
        if kernel is None:
            print(f"{name}: Triton is missing")
            continue
        outputs = (out,) if isinstance(wanted, Map) else ()
        fused = seconds(lambda k=kernel, w=wanted, o=outputs: k(stored, *o, *w.arguments))
        plain = seconds(lambda w=wanted: w.function(decoded, *w.arguments), runs=3)
        print(f"{name}: {each * count / fused / 1e9:.0f} GB/s, {1e3 * fused:.3f} ms; definition {1e3 * plain:.2f} ms")


def products(device: str) -> None:
    """Print the rates of Σx·xᵀ."""
    x = torch.randn(8192, WIDTH, device=device)
    wide = x.double()
    flops = 2 * 8192 * WIDTH**2
    for name, array in (("float32", x), ("float64", wide)):
        print(f"xᵀx in {name}: {flops / seconds(lambda a=array: a.T @ a, runs=3) / 1e12:.1f} TFLOP/s")


def sculpt(*words: str) -> float:
    """Run a command in this process; return its seconds."""
    from sculpt.cli.app import app_of

    start = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        app_of()(list(words), standalone_mode=False)
    return time.perf_counter() - start


def digest(folder: Path) -> str:
    """Return a digest of all weights."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def plain_forward(folder: str, ids: torch.Tensor) -> float:
    """Return the seconds of a forward without the head, all weights on the device."""
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(ids.device)

    def forward() -> None:
        with torch.inference_mode():
            for part in ids.split(16):
                loaded.model(part)

    return seconds(forward, runs=3)


def whole(device: str, size: str, samples: int, work: Path) -> None:
    """Calibrate, fuse and protect a pair on the CPU's kernels and on the device."""
    number = make_pair(work, SIZES[size])
    base, tuned = str(work / "base"), str(work / "sft")
    rng = np.random.default_rng(0)
    rows = [{"input_ids": rng.integers(3, SIZES[size].vocabulary, 128).tolist()} for _ in range(samples)]
    data = work / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{size}: {number / 1e9:.2f} B parameters, {samples} samples of 128 tokens")
    ids = torch.tensor([row["input_ids"] for row in rows], device=device)
    print(f"plain forward, batches of 16: {plain_forward(tuned, ids):.2f} s")
    for name, options in (("diagonal", []), ("full", ["--full", "*"])):
        took = sculpt(
            "calibrate", tuned, "--data", str(data), "--device", device, "--batch-size", "16",
            "-o", str(work / f"{name}.safetensors"), *options,
        )  # fmt: skip
        print(f"calibrate, {name}: {took:.2f} s")
    general = work / "general.safetensors"
    full = ["--full", "*", "--batch-size", "16"]
    sculpt("calibrate", base, "--data", str(data), "--device", device, *full, "-o", str(general))
    hessian = ["--hessian", str(work / "full.safetensors")]
    for name, options in (
        ("AdaDARE with a diagonal Hessian", ["--hessian", str(work / "diagonal.safetensors")]),
        ("two-sided", [*hessian, "--protect", str(general)]),
    ):
        for place in ("cpu", device):
            out = work / f"out-{place.replace(':', '-')}"
            took = sculpt("fuse", base, tuned, *options, "--device", place, "-o", str(out), "--overwrite")
            print(f"fuse, {name}, {place}: {took:.2f} s, {digest(out)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="1.1b")
    parser.add_argument("--samples", type=int, default=64)
    args = parser.parse_args()
    print(f"{torch.cuda.get_device_name(args.device)}, torch {torch.__version__}, {os.cpu_count()} processors")
    kernels(args.device)
    products(args.device)
    with tempfile.TemporaryDirectory() as folder:
        whole(args.device, args.size, args.samples, Path(folder))


if __name__ == "__main__":
    main()
