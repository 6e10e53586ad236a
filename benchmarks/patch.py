"""How small patches are, and how fast, against the whole model and what else makes exact packs.

    python benchmarks/patch.py BASE SFT --adapter ADAPTER --hessian H --work /tmp/patches

Rivals that are not installed are left out: `pip install zstandard reminis` into any environment, named by `--rivals`.
Each arm is a model that sculpt wrote (`fuse`, `dare`), beside the patch that the same command emits. Ratios are those
of the weight files; the patch's size is that of the file, which holds the other files of the folder too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SCULPT = [sys.executable, "-m", "sculpt"]
ROUNDS = 2

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
    if subprocess.run(["xdelta3", "-f", "-e", "-s", str(base), str(model), str(out)]).returncode == 0:
        found["xdelta3"] = out.stat().st_size
except FileNotFoundError:
    pass
print(json.dumps(found))
"""


def run(*words: str | Path) -> None:
    subprocess.run([*SCULPT, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def timed(work: Callable[[], object], output: Path) -> tuple[float, float]:
    """Return the least seconds, and CPU seconds of them, of a few rounds that each write the output anew."""
    found = []
    for _ in range(ROUNDS):
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        work()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        found.append((seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return min(found)


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
        found["two-sided"] = ["fuse", base, sft, *chosen.two_sided]
    if chosen.adapter:
        found["LoRA, merged"] = ["task-arithmetic", base, str(chosen.adapter)]
        found["LoRA, DARE 0.9"] = ["dare", base, str(chosen.adapter), "--sparsity", "0.9"]
    return found


def main() -> None:
    """Print a row an arm."""
    import sculpt
    from sculpt.fusion.patch.look import check_with_base
    from sculpt.fusion.patch.pack import pack
    from sculpt.fusion.ref import with_patches

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("sft", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--hessian", type=Path)
    parser.add_argument("--two-sided", nargs=argparse.REMAINDER, help="flags of the two-sided fuse; last on the line")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rivals", type=Path, default=Path(sys.executable), help="Python of the rivals' environment")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    script, results = chosen.work / "rivals.py", {}
    script.write_text(RIVALS)
    for name, words in {"fine-tune": [], **arms(chosen)}.items():
        model, patch = chosen.work / "model", chosen.work / "patch.safetensors"
        shutil.rmtree(model, ignore_errors=True)
        if words:
            run(*words, "-o", model)
            run(*words, "--emit", "patch", "-o", patch, "--overwrite")
        else:
            shutil.copytree(chosen.sft, model)
            pack(chosen.base, model, output=patch, overwrite=True)
        weights, base = model / "model.safetensors", chosen.base / "model.safetensors"
        check_with_base(with_patches(chosen.base, [patch]))
        out = chosen.work / "out"

        def apply(patch: Path = patch, out: Path = out) -> None:
            sculpt.apply_patch(chosen.base, patch, output=out)

        timed(apply, out)
        same = subprocess.run(["cmp", weights, out / "model.safetensors"], check=False).returncode == 0
        size, whole = patch.stat().st_size, weights.stat().st_size

        packed, copied = chosen.work / "again.safetensors", chosen.work / "copy"

        def again(model: Path = model, packed: Path = packed) -> None:
            pack(chosen.base, model, output=packed, threads=1)

        def copy(copied: Path = copied, weights: Path = weights) -> None:
            shutil.copyfile(weights, copied)
            with copied.open("rb") as stream:
                os.fsync(stream.fileno())

        (_, pack_cpu), (apply_s, apply_cpu) = timed(again, packed), timed(apply, out)
        copy_s, _ = timed(copy, copied)
        told = subprocess.run(
            [chosen.rivals, script, base, weights, chosen.work], check=True, capture_output=True, text=True
        ).stdout
        results[name] = {
            "bit-exact": same,
            "patch": size,
            "ratio": round(whole / size, 2),
            "pack, one thread: MB/s a CPU second": round(whole / pack_cpu / 1e6),
            "apply: MB/s a CPU second": round(whole / apply_cpu / 1e6),
            "apply / copy": round(apply_s / copy_s, 2),
            **{rival: round(whole / nbytes, 2) for rival, nbytes in json.loads(told.splitlines()[-1]).items()},
        }
        if not words:
            results[name]["BitDelta, lossy"] = round(whole / bit_delta(model), 2)
        print(name, json.dumps(results[name], ensure_ascii=False), flush=True)
    (chosen.work / "patch.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
