"""Merging by curvature against fusion_bench's RegMean: whole processes, from two checkpoints and samples to a third.

    python benchmarks/protect.py --work ckpt --fusion-bench its/bin/python

Two Llamas of random numbers, 32 samples of 128 tokens through each, one thread. "two-sided" is sculpt with the base's
side measured too, of as many samples: one more model. Of fusion_bench it is `regmean_merging`, fed 16 samples at a
time; its RegMean++ is written for CLIP's vision model alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

SAMPLES, LENGTH, BATCH, ALPHA = 32, 128, 16, "0.9"


def merge_there(models: list[Path], data: list[Path], out: Path) -> None:
    """Merge as fusion_bench does; runs in its environment."""
    import torch
    import transformers
    from fusion_bench.method.regmean.regmean import regmean_merging  # pyright: ignore[reportMissingImports]

    class Feeder:
        _train_batch_size = BATCH

        def __init__(self, file: Path) -> None:
            rows = torch.tensor([json.loads(line)["input_ids"] for line in file.read_text().splitlines()])
            self.batches = [{"input_ids": part} for part in rows.split(BATCH)]

        def get_train_dataloader(self) -> list[dict[str, torch.Tensor]]:
            return self.batches

        def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return inputs

    loaded = [
        transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
        for model in models
    ]
    merged = regmean_merging(
        loaded, [Feeder(file) for file in data], ["lm_head.*"], [SAMPLES] * len(models), float(ALPHA)
    )
    loaded[0].load_state_dict(merged, strict=False)
    loaded[0].to(torch.bfloat16).save_pretrained(out)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        *pairs, out = map(Path, sys.argv[2:])
        merge_there(pairs[:2], pairs[2:], out)
        return
    from fuse import make_pair, run
    from llama_pair import SIZES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.135b")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("ckpt"), help="where checkpoints are made and kept")
    parser.add_argument("--fusion-bench", type=Path, help="Python of an environment that has it")
    arguments = parser.parse_args()
    folder, out = arguments.work.resolve() / arguments.size, arguments.work.resolve() / "out"
    make_pair(arguments.size, folder)
    other = folder / "other"
    if not other.exists():
        command = [sys.executable, str(Path(__file__).with_name("llama_pair.py")), "--seed", "1"]
        subprocess.run([*command, "--size", arguments.size, "--out", str(other)], check=True)
    models = [folder / "sft", other / "sft"]
    draw, data = random.Random(0), []
    for name in ("one", "two", "general"):
        data.append(folder / f"{name}.jsonl")
        ids = ([draw.randrange(3, SIZES[arguments.size].vocabulary) for _ in range(LENGTH)] for _ in range(SAMPLES))
        data[-1].write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
    sculpt, theirs = [sys.executable, "-m", "sculpt"], arguments.fusion_bench
    given = [str(folder / "base"), *map(str, models), "--device", "cpu"]
    samples = [word for file in data[:2] for word in ("--data", str(file))]
    commands = {
        "sculpt regmean": [*sculpt, "regmean", *given, *samples, "--alpha", ALPHA, "-o", str(out)],
        "sculpt two-sided": [
            *(*sculpt, "two-sided", *given, *samples, "--protect", str(data[2]), "--no-protect-check", "-o", str(out))
        ],
    }
    if theirs:
        parts = [*map(str, (*models, *data[:2])), str(out)]
        commands["fusion_bench RegMean"] = [str(theirs), __file__, "--child", *parts]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for _ in range(arguments.runs):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            found = run(command, environment)
            figures = f"{found.cpu:.1f} CPU s, {found.wall:.1f} s, {found.anonymous / 2**20:.0f} MiB anonymous"
            print(f"{name}: {figures}", flush=True)


if __name__ == "__main__":
    main()
