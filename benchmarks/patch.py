"""How small patches are, and how fast, against the whole model and what else makes exact packs.

    python benchmarks/patch.py BASE SFT --adapter ADAPTER --hessian H --work /tmp/patches

Rivals that are not installed are left out: `pip install numpy zstandard reminis` into any environment, named by
`--rivals`; `zstd` and `xdelta3` are found by their names. Applying is timed in turns with a copy that reads, writes and
syncs the weights, and with one that hashes what it reads and writes too, as applying does.
Each arm is a model that sculpt wrote (`fuse`, `dare`), beside the patch that the same command emits. Ratios are those
of the weight files; the patch's size is that of the file, which holds the other files of the folder too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import xxhash

SCULPT = [sys.executable, "-m", "sculpt"]
ROUNDS = 3

# One file a rival: it is run by the other environment's Python with (base, model, work) and prints bytes or `-`.
RIVALS = r"""
import json, subprocess, sys
from pathlib import Path
import numpy as np
base, model, work = map(Path, sys.argv[1:4])
found = {}
b, m = (np.fromfile(path, np.uint16) for path in (base, model))
if b.size != m.size:
    m = m[: b.size]
try:
    import zstandard
    code = lambda data: len(zstandard.ZstdCompressor(level=3, threads=2).compress(np.ascontiguousarray(data).tobytes()))
    xor = b ^ m
    found["zstd of the XOR"] = code(xor)
    found["XOR, byte planes, zstd"] = sum(code(plane) for plane in (xor.view(np.uint8)[::2], xor.view(np.uint8)[1::2]))
    found["model, byte planes, zstd (as ZipNN)"] = sum(
        code(plane) for plane in (m.view(np.uint8)[::2], m.view(np.uint8)[1::2])
    )
except ImportError:
    pass
out = work / "rival.zst"
words = ["zstd", "-q", "-f", "-3", "--long=30", f"--patch-from={base}", str(model), "-o", str(out)]
if subprocess.run(words).returncode == 0:
    found["zstd --patch-from"] = out.stat().st_size
try:
    out = work / "rival.vcdiff"
    words = ["xdelta3", "-1", "-f", "-e", "-B", str(1 << 30), "-s", str(base), str(model), str(out)]
    if subprocess.run(words).returncode == 0:
        found["xdelta3"] = out.stat().st_size
except FileNotFoundError:
    pass
reminis = Path(sys.executable).with_name("reminis")
if reminis.exists():
    for weights in (base, model):
        subprocess.run([reminis, "convert", "-q", weights, "-o", work / f"{weights is base}.db"], check=True)
    out = work / "rival.pack"
    subprocess.run([reminis, "diff", "-q", "-o", out, work / "True.db", work / "False.db"], check=True, stdout=-3)
    found["reminis"] = out.stat().st_size
print(json.dumps(found))
"""


def run(*words: str | Path) -> None:
    subprocess.run([*SCULPT, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def timed(works: Mapping[Path, Callable[[Path], object]]) -> list[tuple[float, float]]:
    """Return the least seconds, and the least CPU seconds, of a few rounds of writing the outputs, in turns."""
    found: dict[Path, list[tuple[float, float]]] = {output: [] for output in works}
    for _ in range(ROUNDS):
        for output, work in works.items():
            shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
            before, start = time.process_time(), time.perf_counter()
            work(output)
            found[output].append((time.perf_counter() - start, time.process_time() - before))
    return [(min(wall), min(cpu)) for wall, cpu in (zip(*times, strict=True) for times in found.values())]


def copy(source: Path, target: Path, *, hashing: bool = False) -> None:
    """Copy a file as one who reads, writes and syncs it, and hashes what is read and what is written if told to."""
    with source.open("rb") as stream, target.open("wb") as out:
        while piece := stream.read(1 << 21):
            for _ in range(2 * hashing):
                xxhash.xxh3_128_digest(piece)
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())


def apply(base: Path, patch: Path, output: Path) -> None:
    """Write the model that a patch makes."""
    from sculpt.fusion.patch.apply import unpack
    from sculpt.fusion.ref import with_patches

    unpack(with_patches(base, [patch]), output=output)


def bit_delta(model: Path) -> int:
    """Return the bytes that BitDelta (arXiv:2402.10193) takes: a sign for each matrix element, a scale each; lossy."""
    from sculpt import open_checkpoint

    infos = open_checkpoint(model).tensors.values()
    return sum(-(-i.num_elements // 8) + 2 if len(i.shape) == 2 and "embed" not in i.name else i.nbytes for i in infos)


def arms(chosen: argparse.Namespace) -> dict[str, list[str]]:
    base, sft, no = str(chosen.base), str(chosen.sft), ["--no-calibration"]
    known = ["--hessian", str(chosen.hessian)] if chosen.hessian else no
    found = {}
    for p in ("0.9", "0.99"):
        found[f"DARE {p}"] = ["dare", base, sft, "--sparsity", p]
        found[f"AdaDARE-γ {p}, closed form"] = ["fuse", base, sft, *known, "--sparsity", p]
        found[f"AdaDARE-γ {p}, exact"] = ["fuse", base, sft, *known, "--sparsity", p, "--allocation", "exact"]
    if chosen.two_sided:
        found["two-sided"] = ["two-sided", base, sft, *chosen.two_sided]
    if chosen.adapter:
        found["LoRA, merged"] = ["task-arithmetic", base, str(chosen.adapter)]
        found["LoRA, DARE 0.9"] = ["dare", base, str(chosen.adapter), "--sparsity", "0.9"]
    return found


def main() -> None:
    """Print a row an arm."""
    from sculpt.fusion.patch.pack import pack

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("sft", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--hessian", type=Path)
    parser.add_argument("--two-sided", nargs=argparse.REMAINDER, help="flags of `sculpt two-sided`; last on the line")
    parser.add_argument("--only", action="append", help="of the models these alone; repeatable")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rivals", type=Path, default=Path(sys.executable), help="Python of the rivals' environment")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    script, results = chosen.work / "rivals.py", {}
    script.write_text(RIVALS)
    for name, words in {"fine-tune": [], **arms(chosen)}.items():
        if chosen.only and name not in chosen.only:
            continue
        model, patch = chosen.work / "model", chosen.work / "patch.safetensors"
        shutil.rmtree(model, ignore_errors=True)
        if words:
            run(*words, "-o", model)
            run(*words, "--emit", "patch", "-o", patch, "--overwrite")
        else:
            shutil.copytree(chosen.sft, model)
            pack(chosen.base, model, output=patch, overwrite=True)
        weights, base = model / "model.safetensors", chosen.base / "model.safetensors"
        out = chosen.work / "out"

        packed, copied, hashed = (chosen.work / kind for kind in ("again.safetensors", "copy", "hashed"))
        times = timed(
            {
                out: partial(apply, chosen.base, patch),
                copied: partial(copy, weights),
                hashed: partial(copy, weights, hashing=True),
                packed: lambda file, model=model: pack(chosen.base, model, output=file, threads=1),
            }
        )
        (apply_s, apply_cpu), (copy_s, copy_cpu), (hashed_s, hashed_cpu), (_, pack_cpu) = times
        same = subprocess.run(["cmp", weights, out / "model.safetensors"], check=False).returncode == 0
        size, whole = patch.stat().st_size, weights.stat().st_size
        told = subprocess.run(
            [chosen.rivals, script, base, weights, chosen.work], check=True, capture_output=True, text=True
        ).stdout
        results[name] = {
            "bit-exact": same,
            "patch": size,
            "ratio": round(whole / size, 2),
            "pack, one thread: MB/s a CPU second": round(whole / pack_cpu / 1e6),
            "apply: MB/s a CPU second": round(whole / apply_cpu / 1e6),
            "apply, copy, copy and hash: seconds": [round(each, 2) for each in (apply_s, copy_s, hashed_s)],
            "their CPU seconds": [round(each, 2) for each in (apply_cpu, copy_cpu, hashed_cpu)],
            "apply / copy": round(apply_s / copy_s, 2),
            **{rival: round(whole / nbytes, 2) for rival, nbytes in json.loads(told.splitlines()[-1]).items()},
        }
        if not words:
            results[name]["BitDelta, lossy"] = round(whole / bit_delta(model), 2)
        print(name, json.dumps(results[name], ensure_ascii=False), flush=True)
    (chosen.work / "patch.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
