"""LoRA training that forgets, and what helps against it.

    python benchmarks/lorasculpt.py --results lorasculpt.jsonl

SmolLM2-135M-Instruct (from the package index, as for `sculpt demo`) learns to write the part-of-speech tags of a short
sentence of the Brown corpus. Compared are plain LoRA, L2 regularisation and LoRASculpt in training, and after the
training of the plain LoRA one-shot pruning of A and B, DARE and Model Tailor.

The columns are those of the source (Liang et al., CVPR 2025): Source, how many next words of prose from other files of
the corpus are ranked first; Target, how many tags of unseen sentences are right; Avg, their mean; in percent, mean ±
deviation over the seeds (of the order of the data, of the adapter's start, of DARE's draws). Beside them the perplexity
of the prose and the density of B·A.

Every line is written when it is known, and a run goes on where it was; lines of other settings are left alone. The
settings are the source's where its task and its 7 B model do not matter (densities, α, ω, the scale α/r = 2, all linear
layers), and the learning rate and steps such that a plain LoRA learns the task and forgets, on the validation files.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from sculpt import fuse
from sculpt.api import Calibration
from sculpt.demo.brown import BROWN, tagging_task
from sculpt.demo.fetch import fetch
from sculpt.demo.models import smollm2
from sculpt.demo.score import score_model
from sculpt.demo.task import Question, encode_prose, encode_question
from sculpt.fusion.cache import default_cache
from sculpt.fusion.lora.density import adapter_density
from sculpt.fusion.lora.prune import prune_adapter
from sculpt.fusion.methods import Dare
from sculpt.fusion.methods.tailor import Tailor
from sculpt.fusion.run.settings import Settings
from sculpt.live.model import load_model
from sculpt.training import AdapterMethod, Schedule, train_adapter

TRAINED = ("lora", "l2", "lorasculpt")
NAMES = {
    "base": "base",
    "lora": "LoRA",
    "l2": "L2",
    "prune": "LoRA, pruned",
    "dare": "DARE",
    "tailor": "Model Tailor",
    "lorasculpt": "LoRASculpt",
}


def short(examples: Sequence[Question], words: int) -> list[Question]:
    return [example for example in examples if len(example.answers) <= words]


def write_data(examples: Sequence[Question], file: Path) -> Path:
    rows = [{"prompt": example.prompt, "completion": "".join(example.answers)} for example in examples]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Experiment:
    """Everything that does not change between the lines."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.args, self.folder = args, folder
        self.base = smollm2(default_cache())
        task = tagging_task(fetch(BROWN, default_cache()))
        tokenizer = AutoTokenizer.from_pretrained(self.base, local_files_only=True)
        part = task.validation if args.validation else task.test
        self.data = write_data(short(task.train, args.words), folder / "train.jsonl")
        self.test = [encode_question(one, tokenizer) for one in short(part, args.words)[: args.test]]
        self.prose = [encode_prose(text, tokenizer, args.prose_tokens) for text in task.prose[: args.prose]]
        self.model = load_model(self.base, dtype=torch.float32, device="cpu").model

    def score(self, model: Any) -> dict[str, float]:
        found = score_model(model, self.test, self.prose)
        return {"source": found.general, "target": found.target, "avg": found.avg, "perplexity": found.perplexity}

    def score_adapter(self, adapter: Path) -> dict[str, float]:
        from peft import PeftModel

        tuned = PeftModel.from_pretrained(copy.deepcopy(self.model), adapter)
        found = self.score(tuned.merge_and_unload())  # pyright: ignore[reportCallIssue]
        return {**found, "density": adapter_density(adapter).density}

    def train(self, name: str, rank: int, seed: int) -> tuple[Path, dict[str, float]]:
        args = self.args
        options: dict[str, Any] = {
            "lorasculpt": {
                "density": args.density,
                "warmup_steps": args.warmup_steps,
                "alpha": args.alpha,
                "cmr": args.cmr,
            },
            "l2": {"strength": args.l2},
        }.get(name, {})
        output = self.folder / f"{name}-{rank}-{seed}"
        trained = train_adapter(
            self.base,
            data=self.data,
            output=output,
            method=AdapterMethod(method=name, rank=rank, **options),  # pyright: ignore[reportArgumentType]
            schedule=Schedule(
                max_steps=args.steps,
                learning_rate=args.learning_rate,
                batch_size=args.batch,
                max_length=128,
                save_steps=0,
                dtype=args.dtype,
                seed=seed,
                device="cpu",
            ),
        )
        last = trained.log[-1]
        kept = {key: last[key] for key in ("loss", "loss_task", "cmr", "l2", "term_share") if key in last}
        return output, {**kept, "seconds": trained.seconds}

    def after(self, adapter: Path, rank: int, seed: int) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield what becomes of a trained LoRA by methods that need no training."""
        thin = self.folder / f"thin-{rank}-{seed}"
        prune_adapter(adapter, output=thin, density=self.args.density)
        yield "prune", self.score_adapter(thin)
        sparsity = 1 - self.args.density
        calibration = Calibration(data=self.data, samples=self.args.samples, max_length=128, seed=seed, device="cpu")
        for name, method in (("dare", Dare(sparsity=sparsity)), ("tailor", Tailor(sparsity=sparsity))):
            with tempfile.TemporaryDirectory(dir=self.folder) as output:
                manifest = fuse(
                    self.base,
                    adapter,
                    output=Path(output) / "fused",
                    method=method,
                    calibration=calibration if method.uses_curvature else False,
                    settings=Settings(seed=seed, dtype="float32", device="cpu"),
                )
                del manifest
                model = load_model(Path(output) / "fused", dtype=torch.float32, device="cpu").model
                yield name, {**self.score(model), "density": self.args.density}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    return {
        key: value
        for key, value in sorted(vars(args).items())
        if key not in ("results", "seeds", "first_seed", "ranks", "methods", "quick")
    }


def known_lines(file: Path, settings: dict[str, Any]) -> dict[tuple[str, int, int], dict[str, Any]]:
    found = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        if row["settings"] == settings:
            found[row["method"], row["rank"], row["seed"]] = row
    return found


def run(args: argparse.Namespace, folder: Path) -> None:
    settings = settings_of(args)
    known = known_lines(args.results, settings)
    experiment: Experiment | None = None

    def note(method: str, rank: int, seed: int, figures: dict[str, float], started: float) -> None:
        row = {"method": method, "rank": rank, "seed": seed, **figures, "core_seconds": time.process_time() - started}
        with args.results.open("a") as stream:
            stream.write(json.dumps({**row, "settings": settings}, sort_keys=True) + "\n")
        shown = " ".join(f"{key} {figures[key]:.2f}" for key in ("source", "target", "avg", "perplexity"))
        print(f"seed {seed} rank {rank:3} {method:12} {shown}  {row['core_seconds']:.0f} core seconds", flush=True)

    for seed in range(args.first_seed, args.seeds):
        for rank, name in ((rank, name) for rank in args.ranks for name in args.methods):
            wanted = [name, "prune", "dare", "tailor"] if name == "lora" and not args.quick else [name]
            known |= known_lines(args.results, settings)  # another process may write beside this one
            if all((one, rank, seed) in known for one in wanted):
                continue
            experiment = experiment or Experiment(args, folder)
            started = time.process_time()
            if ("base", 0, 0) not in known:
                known["base", 0, 0] = {}
                note("base", 0, 0, experiment.score(experiment.model), started)
                started = time.process_time()
            adapter, figures = experiment.train(name, rank, seed)
            note(name, rank, seed, {**experiment.score_adapter(adapter), **figures}, started)
            for other, scores in experiment.after(adapter, rank, seed) if name == "lora" and not args.quick else ():
                note(other, rank, seed, scores, started)


def show(args: argparse.Namespace) -> None:
    known = known_lines(args.results, settings_of(args))

    def cell(rows: Sequence[dict[str, Any]], key: str) -> str:
        values = [row[key] for row in rows if key in row]
        if not values:
            return ""
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread}"

    print("\nsettings: " + ", ".join(f"{key} {value}" for key, value in settings_of(args).items()))
    print("\n| rank | method | seeds | Source | Target | Avg | perplexity | density of B·A |")
    print("|---|---|---|---|---|---|---|---|")
    for rank in (0, *args.ranks):
        for method, title in NAMES.items():
            rows = [row for (name, r, _), row in known.items() if (name, r) == (method, rank)]
            if rows:
                cells = [cell(rows, key) for key in ("source", "target", "avg", "perplexity", "density")]
                print(f"| {rank or ''} | {title} | {len(rows)} | " + " | ".join(cells) + " |")
    spent = sum(max(r["core_seconds"] for r in unit) for unit in _units(known))
    print(f"\n{spent / 60:.1f} core minutes")


def _units(known: dict[tuple[str, int, int], dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return lines that share one clock: what is made of a LoRA after its training counts on from it."""
    units: dict[Any, list[dict[str, Any]]] = {}
    for (method, rank, seed), row in known.items():
        units.setdefault((rank, seed, "lora" if method in ("prune", "dare", "tailor") else method), []).append(row)
    return list(units.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("lorasculpt.jsonl"), help="JSON lines; added to")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="to share the work among processes")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--methods", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--steps", type=int, default=56)
    parser.add_argument("--warmup-steps", type=int, default=14)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", help="of the base while training; the adapter is float32")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--alpha", type=float, default=1e-3)
    parser.add_argument("--cmr", choices=["sum", "mean"], default="sum", help="the regulariser over the layers")
    parser.add_argument("--l2", type=float, default=1e-3)
    parser.add_argument("--words", type=int, default=9, help="longest sentence")
    parser.add_argument("--test", type=int, default=60, help="sentences")
    parser.add_argument("--prose", type=int, default=16, help="pieces of prose")
    parser.add_argument("--prose-tokens", type=int, default=96)
    parser.add_argument("--samples", type=int, default=32, help="that Model Tailor calibrates on")
    parser.add_argument("--validation", action="store_true", help="score the files for choosing settings")
    parser.add_argument("--quick", action="store_true", help="train only")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        run(args, Path(folder))
    show(args)


if __name__ == "__main__":
    main()
