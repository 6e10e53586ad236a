"""The fuse against the disk and against mergekit: whole processes, interleaved, medians, ratios.

    python benchmarks/fuse.py                                  # 1.1 B parameters, bfloat16, five shards
    python benchmarks/fuse.py --sizes 0.15b,1.1b,4b --runs 5
    python benchmarks/fuse.py --mergekit ~/.cache/sculpt/mergekit
    python benchmarks/fuse.py --sizes 0.135b --curvature       # with what a calibration measures, too
    python benchmarks/fuse.py --sizes 1k,50k                   # 1,002 and 49,998 small tensors

Without `--curvature` all is of H = I. With it: a diagonal Hessian from a file; the base protected by full matrices from
files; and both with models that are measured on the way, 32 samples of 128 tokens each, 16 at a time.

Peak anonymous memory is `RssAnon` of /proc, sampled every 10 ms: what the process holds for itself. Resident memory
also counts mapped pages of the inputs, which the kernel takes back when it needs them. Inputs are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import date
from math import prod
from pathlib import Path

from llama_pair import SIZES, shapes

HERE = Path(__file__).parent
QUIET = "--no-copy-tokenizer --no-write-model-card --quiet"
LIGHT = "--lazy-unpickle --low-cpu-memory --out-shard-size 100M"
MERGEKIT = {"linear": ("linear", ""), "dare": ("dare_linear", "density: 0.1"), "ties": ("ties", "density: 0.1")}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process: seconds, and peak bytes."""

    wall: float
    cpu: float
    anonymous: float
    resident: float


def run(command: list[str], environment: dict[str, str]) -> Run:
    """Run a process to its end.

    Raises:
        RuntimeError: It failed.
    """
    peak = 0
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    over = threading.Event()

    def sample() -> None:
        nonlocal peak
        status = Path(f"/proc/{process.pid}/status")
        while not over.is_set():
            try:
                text = status.read_text()
            except OSError:
                return
            for line in text.splitlines():
                if line.startswith("RssAnon"):
                    peak = max(peak, int(line.split()[1]) * 1024)
            time.sleep(0.01)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    over.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {told.decode()[-800:]}")
    return Run(wall=wall, cpu=usage.ru_utime + usage.ru_stime, anonymous=peak, resident=usage.ru_maxrss * 1024)


def sculpt_commands(base: Path, tuned: Path, out: Path) -> dict[str, list[str]]:
    sculpt = [sys.executable, "-m", "sculpt"]
    ends = ["-o", str(out)]
    pair = [str(base), str(tuned)]
    fuse = [*sculpt, "fuse", *pair, "--no-calibration"]
    return {
        "sculpt AdaDARE closed form": [*fuse, *ends],
        "sculpt AdaDARE exact": [*fuse, "--allocation", "exact", *ends],
        "sculpt DARE": [*sculpt, "dare", *pair, *ends],
        "sculpt TIES": [*sculpt, "ties", *pair, "--density", "0.1", "--scale", "0.7", *ends],
        "sculpt task arithmetic": [*sculpt, "task-arithmetic", *pair, "--scale", "0.7", *ends],
    }


def curvature_commands(base: Path, tuned: Path, out: Path, work: Path, vocabulary: int) -> dict[str, list[str]]:
    """Return commands that use curvature; measure first what they take from files."""
    sculpt, pair = [sys.executable, "-m", "sculpt"], [str(base), str(tuned)]
    draw = random.Random(0)
    rows = work / "rows.jsonl"
    ids = ([draw.randrange(3, vocabulary) for _ in range(128)] for _ in range(32))
    rows.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
    general = work / "general.jsonl"
    general.write_text("".join(reversed(rows.read_text().splitlines(keepends=True))))
    files = {}
    for name, model in (("diagonal", tuned), ("target", tuned), ("base", base)):
        files[name] = work / f"{name}.safetensors"
        options = [] if name == "diagonal" else ["--full", "*"]
        if not files[name].exists():
            data = ["--data", str(rows if model == tuned else general), "--batch-size", "16", "--device", "cpu"]
            run([*sculpt, "calibrate", str(model), *data, *options, "-o", str(files[name])], {**os.environ})
    protected = ["--hessian", str(files["target"]), "--protect", str(files["base"])]
    measured = ["--data", str(rows), "--batch-size", "16"]
    return {
        "sculpt AdaDARE, diagonal H": [*sculpt, "fuse", *pair, "--hessian", str(files["diagonal"]), "-o", str(out)],
        "sculpt two-sided, from files": [*sculpt, "two-sided", *pair, *protected, "-o", str(out)],
        "sculpt AdaDARE, measured": [*sculpt, "fuse", *pair, *measured, "-o", str(out)],
        "sculpt two-sided, measured": [
            *(*sculpt, "two-sided", *pair, *measured, "--protect", str(general), "--no-protect-check", "-o", str(out))
        ],
    }


def floor_commands(base: Path, tuned: Path, out: Path) -> dict[str, list[str]]:
    floor = [sys.executable, str(HERE / "floor.py"), str(base), str(tuned), str(out)]
    return {"floor, synced": [*floor, "--sync"], "floor": floor, "cp": ["cp", "-r", str(tuned), str(out)]}


def mergekit_commands(environment: Path, base: Path, tuned: Path, out: Path, work: Path) -> dict[str, list[str]]:
    """Return mergekit's commands, as they are by default and with the flags that make it lightest."""
    found = {}
    for name, (method, parameters) in MERGEKIT.items():
        recipe = work / f"{name}.yaml"
        lines = [f"merge_method: {method}", "dtype: bfloat16"]
        if method == "linear":
            models = [f"  - model: {path}\n    parameters: {{weight: {w}}}" for path, w in ((base, 0.3), (tuned, 0.7))]
        else:
            lines += [f"base_model: {base}", "parameters: {normalize: false}"]
            models = [f"  - model: {tuned}\n    parameters: {{weight: 0.7, {parameters}}}"]
        recipe.write_text("\n".join([*lines, "models:", *models]) + "\n")
        command = [str(environment / "bin/mergekit-yaml"), str(recipe), str(out), *QUIET.split()]
        found |= {f"mergekit {method}": command, f"mergekit {method}, light": [*command, *LIGHT.split()]}
    return found


def only(commands: dict[str, list[str]], words: list[str]) -> dict[str, list[str]]:
    """Return the commands whose name has one of the words, and the floors, which others are compared with."""
    kept = ["floor", *words]
    return {name: own for name, own in commands.items() if not words or any(word in name for word in kept)}


def measure(commands: dict[str, list[str]], out: Path, runs: int, *, warm: bool) -> dict[str, list[Run]]:
    """Run the commands in turn, `runs` rounds, each into a folder that is new."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody installs sculpt to compile it at every start
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for turn in range(runs + warm):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            measured = run(command, environment)
            if turn >= warm:
                found[name].append(measured)
            print(f"  {name}: {measured.wall:.2f} s, {measured.cpu:.2f} CPU s", file=sys.stderr, flush=True)
    shutil.rmtree(out, ignore_errors=True)
    return found


def median(runs: list[Run], figure: str) -> float:
    return statistics.median(getattr(found, figure) for found in runs)


def rows_of(size: str, found: dict[str, list[Run]]) -> list[dict[str, object]]:
    synced, plain = (median(found[name], "wall") for name in ("floor, synced", "floor"))
    billions = sum(map(prod, shapes(SIZES[size]).values())) / 1e9
    rows = []
    for name, runs in found.items():
        wall, cpu = median(runs, "wall"), median(runs, "cpu")
        rows.append(
            {
                "size": size,
                "what": name,
                "runs": len(runs),
                "wall_s": round(wall, 3),
                "wall_range_s": [round(min(r.wall for r in runs), 3), round(max(r.wall for r in runs), 3)],
                "cpu_s": round(cpu, 3),
                "wall_s_per_billion": round(wall / billions, 2),
                "cpu_s_per_billion": round(cpu / billions, 2),
                "of_synced_floor": round(wall / synced, 2),
                "of_floor": round(wall / plain, 2),
                "anonymous_mib": round(max(r.anonymous for r in runs) / 2**20),
                "resident_mib": round(max(r.resident for r in runs) / 2**20),
            }
        )
    return rows


def markdown(rows: list[dict[str, object]]) -> str:
    lines = [
        "| size | what | wall s | per 10⁹ | CPU s | per 10⁹ | × synced floor | × floor "
        "| anonymous MiB | resident MiB |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        low, high = row["wall_range_s"]  # pyright: ignore[reportGeneralTypeIssues]
        lines.append(
            f"| {row['size']} | {row['what']} | {row['wall_s']} ({low}–{high}) | {row['wall_s_per_billion']} | "
            f"{row['cpu_s']} | {row['cpu_s_per_billion']} | {row['of_synced_floor']} | {row['of_floor']} | "
            f"{row['anonymous_mib']} | {row['resident_mib']} |"
        )
    return "\n".join(lines) + "\n"


def make_pair(size: str, folder: Path) -> None:
    if not (folder / "sft").exists():
        command = [sys.executable, str(HERE / "llama_pair.py"), "--size", size, "--out", str(folder)]
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1.1b", help=f"comma list of {', '.join(SIZES)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("ckpt"), help="where checkpoints are made and kept")
    parser.add_argument("--mergekit", type=Path, help="mergekit's own environment: `make mergekit-venv`")
    parser.add_argument("--mergekit-runs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="commands whose name has such a word")
    parser.add_argument("--curvature", action="store_true", help="also with what a calibration measures")
    parser.add_argument("--json", type=Path, help="also write the figures here, for fuse_chart.py")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.sizes.split(","):
        folder, out = arguments.work.resolve() / size, arguments.work.resolve() / "out"
        make_pair(size, folder)
        pair = folder / "base", folder / "sft"
        commands = floor_commands(*pair, out) | sculpt_commands(*pair, out)
        if arguments.curvature:
            commands |= curvature_commands(*pair, out, folder, SIZES[size].vocabulary)
        found = measure(only(commands, arguments.only), out, arguments.runs, warm=True)
        if arguments.mergekit:
            others = mergekit_commands(arguments.mergekit, *pair, out, folder)
            found |= measure(only(others, arguments.only), out, arguments.mergekit_runs, warm=False)
        rows += rows_of(size, found)
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
