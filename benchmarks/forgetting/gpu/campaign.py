"""The comparison on one GPU: many fine-tunes, every arm at its best strength, a dozen processes and a clock.

    python -m sculpt.benchmarks.forgetting.gpu.campaign --model base/ --data campaign.json.gz --work work/ \
        --scores scores.jsonl --seconds 420 --processes 8

`prepare.py` writes the data. Jobs stand in the order of what they are worth: a fine-tune's training, then groups of its
arms, `--groups` in its order; each process takes the first that nobody has taken and whose fine-tune is there. Every
score is a line that is written at once, so whatever the clock cuts off loses nothing; `table.py` makes tables of them.
"""

from __future__ import annotations

import argparse
import functools
import gc
import gzip
import json
import os
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from sculpt.benchmarks.forgetting.climbing import climb
from sculpt.evaluate.scores import h_score

from . import moments
from .methods import MERGED, SINGLE, Known
from .scoring import Scorer
from .stacks import Layout, Stacks
from .training import STEPS, train

SEEDS = (0, 1, 2)
SAMPLES = 128  # of a task that are measured
BACKWARDS = 64  # where each takes a backward
CHATS = "chats.json"
ANSWER_TOKENS = 48
TRIES = 3
LOST = 10.0  # a harsh fine-tune's perplexity of prose over the base's
GROUPS = (  # of arms for one fine-tune, and for several
    (
        ("fine-tune", "interpolation", "two-sided", "two-sided, no samples"),
        ("two-sided", "two-sided, no samples", "regmean", "task arithmetic"),
    ),
    (
        ("two-sided by gradients", "two-sided by answers", "null space, soft"),
        ("two-sided by gradients", "wudi", "actmat"),
    ),
    (("ties 0.1", "lines", "dare 0.9"), ("ties 0.1", "lines", "dare-ties 0.9")),
    (("cgm soft", "cgm hard"), ("fisher by gradients", "model stock", "ace")),
    (
        (
            "two-sided, chats:3",
            "two-sided, no samples, chats:1",
            "two-sided, no samples, chats:3",
            "two-sided by gradients, chats:3",
        ),
        ("tsv-m", "iso-c"),
    ),
    (("two-sided, no samples, root", "two-sided, no samples, root, scaled"), ("two-sided, no samples, root",)),
    (("two-sided, G by gradients", "two-sided, no samples, G by gradients", "two-sided, both by gradients"), ()),
    (("adadare exact 0.9", "aim", "dg-hard"), ()),
)
CELLS = [
    (task, *how.split())
    for how in ("plain mild", "plain lora", "chat mild", "plain harsh", "plain muon", "chat harsh")
    for task in ("tagging", "pronouncing")
]
MERGES = [
    (tasks, kind)
    for kind in ("mild", "lora")
    for tasks in (("tagging", "pronouncing"), ("tagging", "pronouncing", "classing"))
]


@dataclass(frozen=True)
class Job:
    """A piece of work: training where there is one tuned model and no arms, else scoring arms.

    Attributes:
        tuned: Names of fine-tunes, `task form kind seed`.
    """

    tuned: tuple[str, ...]
    arms: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "+".join(self.tuned) + (f": {', '.join(self.arms)}" if self.arms else "")


def jobs(groups: Sequence[int]) -> list[Job]:
    """Return what is to be done, what is worth most first: a group of arms on all seeds before the next."""
    found: list[Job] = []
    for place, group in enumerate(groups):
        single, several = GROUPS[group]
        for seed in SEEDS:
            if not place:
                found += [Job((f"{' '.join(cell)} {seed}",)) for cell in CELLS]
                found += [Job((f"classing plain {kind} {seed}",)) for kind in ("mild", "lora")]
            found += [Job((f"{' '.join(cell)} {seed}",), single) for cell in CELLS]
            if several:
                found += [
                    Job(tuple(f"{task} plain {kind} {seed}" for task in tasks), several) for tasks, kind in MERGES
                ]
    return found


class Worker:
    """One process: the base on the device, and one set of fine-tunes at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.args, self.work = args, Path(args.work)
        self.device = torch.device(args.device)
        self.deadline = args.until
        with gzip.open(args.data) as stream:
            self.data = json.load(stream)
        self.data["abilities"]["chats"] = json.loads((self.work / CHATS).read_text())
        self._load = lambda: transformers.AutoModelForCausalLM.from_pretrained(
            args.model, dtype=torch.float32, attn_implementation="sdpa"
        ).to(self.device)
        self.model = self._load().to(dtype_on(self.device)).eval()  # what is scored
        self.model.requires_grad_(False)
        self.layout = Layout.of(self.model)
        self.base = self.layout.stacked(dict(self.model.named_parameters()), self.device)
        self.scorers: dict[Any, tuple[Scorer, dict[str, float]]] = {}
        self.held: dict[Any, Stacks] = {}  # statistics, what was used last at the end
        self.known: tuple[Any, Known] | None = None

    def scorer(self, tasks: Sequence[str], split: str) -> tuple[Scorer, dict[str, float]]:
        """Return what scores on a split, and the base's figures."""
        key = (tuple(tasks), split)
        if key not in self.scorers:
            sources = {f"target {task}": {"kind": "answers", "rows": self.data["tasks"][task][split]} for task in tasks}
            sources |= {name: one[split] for name, one in self.data["abilities"].items()}
            scorer = Scorer(sources, self.device)
            self.layout.place(self.model, self.base, {})
            figures = scorer.score(self.model, keep=True)
            self.scorers = dict([*self.scorers.items()][-1:]) | {key: (scorer, figures)}
            self.write({"tasks": tasks, "arm": "base", "split": split, "figures": figures})
        return self.scorers[key]

    def write(self, row: Mapping[str, Any]) -> None:
        line = (json.dumps(row) + "\n").encode()
        opened = os.open(self.args.scores, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(opened, line)
        os.close(opened)

    def late(self) -> bool:
        return time.time() > self.deadline

    def file(self, tuned: str) -> Path:
        return self.work / "tuned" / f"{tuned.replace(' ', '-')}.pt"

    def train(self, tuned: str) -> None:
        task, form, kind, seed = tuned.split()
        scorer, base = self.scorer([f"{task} {form}"], "validation")

        def lost(model: Any) -> bool:
            return scorer.score(model)["prose"] - base["prose"] > torch.tensor(LOST).log()

        torch.set_float32_matmul_precision("high")
        model, said = train(
            self._load,
            self.data["tasks"][f"{task} {form}"]["train"],
            task,
            kind,
            int(seed),
            lost,
            self.args.steps,
            self.args.rates,
        )
        torch.set_float32_matmul_precision("highest")
        state = {name: p.detach().to(torch.bfloat16).cpu() for name, p in model.named_parameters()}
        file = self.file(tuned)
        torch.save(state, file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)
        self.write({"tuned": [tuned], "arm": "training", **said})

    def know(self, tuned: tuple[str, ...]) -> Known:
        """Return what is known of some fine-tunes; of other ones it is let go of."""
        if self.known is not None and self.known[0] == tuned:
            return self.known[1]
        self.known = None
        gc.collect()
        torch.cuda.empty_cache()
        states = [torch.load(self.file(name), mmap=True) for name in tuned]
        deltas = [
            {kind: stack - self.base[kind] for kind, stack in self.layout.stacked(state, self.device).items()}
            for state in states
        ]

        def measure(what: str, k: int) -> Any:
            if what in ("general", "chats", "general gradients", "general fisher", "magnitudes"):
                rows = [row for row in self.data["general"] if what != "chats" or row["kind"] == "chats"]
                own = [([*row["ids"]], [0] * len(row["ids"])) for row in rows]
                return self.hold(what, lambda: self.measured(what, {}, own))
            task, form, *_ = tuned[k].split()
            rows = self.data["tasks"][f"{task} {form}"]["train"][:SAMPLES]
            if what == "tokens":
                return sum(len(ids) for ids, _ in rows)
            return self.hold((what, tuned[k]), lambda: self.measured(what, deltas[k], rows))

        self.known = (tuned, Known(self.base, deltas, measure))
        return self.known[1]

    def hold(self, key: Any, make: Callable[[], Stacks]) -> Stacks:
        """Return statistics, measured where they are not held; those used longest ago make room."""
        found = self.held.pop(key, None)
        if found is None:
            while self.held and sum(map(size_of, self.held.values())) > self.args.gigabytes * 1e9:
                del self.held[next(iter(self.held))]
            found = make()
        self.held[key] = found
        return found

    def measured(self, what: str, delta: Stacks, rows: Sequence[Any]) -> Stacks:
        self.layout.place(self.model, self.base, delta)
        if what in ("fisher", "general fisher"):
            some = rows[:: max(1, len(rows) // BACKWARDS)][:BACKWARDS]
            self.model.requires_grad_(True)
            found = moments.fisher(self.model, some, self.layout)
            self.model.requires_grad_(False)
            return found
        if what in ("gradients", "general gradients"):
            some = rows[:: max(1, len(rows) // BACKWARDS)] if what == "general gradients" else rows
            return moments.by_gradients(self.model, some[:BACKWARDS])
        return moments.moments(self.model, rows, answers_alone=what == "answers", magnitudes=what == "magnitudes")

    def score(self, job: Job, arm: str, strength: float | None, split: str, delta: Stacks, seconds: float) -> float:
        tasks = [" ".join(name.split()[:2]) for name in job.tuned]
        scorer, base = self.scorer(tasks, split)
        start = time.time()
        self.layout.place(self.model, self.base, delta)
        figures = scorer.score(self.model)
        self.write(
            {
                "tuned": job.tuned,
                "arm": arm,
                "strength": strength,
                "split": split,
                "figures": figures,
                "fuse seconds": round(seconds, 3),
                "score seconds": round(time.time() - start, 3),
            }
        )
        return value(figures, base)

    def run(self, job: Job) -> None:
        """Do a job, but what is left of it when the time is up."""
        if not job.arms:
            self.train(job.tuned[0])
            return
        known = self.know(job.tuned)
        arms = MERGED if len(job.tuned) > 1 else SINGLE
        for name in job.arms:
            known.memory.clear()
            if self.late():
                return
            arm = arms[name]

            def made(strength: float, split: str, name: str = name, arm: Any = arm) -> float:
                if self.late():
                    raise TimeoutError
                start = time.time()
                delta = arm.run(known, strength)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                return self.score(job, name, strength, split, delta, time.time() - start)

            for _ in range(TRIES):
                try:
                    chosen = self.chosen(job, name)
                    if chosen is None:
                        chosen = arm.grid[0]
                        if len(arm.grid) > 1:
                            tried = functools.cache(lambda s, made=made: made(s, "validation"))
                            chosen = climb(arm.grid, arm.start, tried)
                        self.choose(job, name, chosen)
                    made(chosen, "test")
                except TimeoutError:
                    return
                except torch.OutOfMemoryError:  # others share the memory
                    self.write({"tuned": job.tuned, "arm": name, "error": "out of memory"})
                    self.held.clear()
                    known.memory.clear()
                    torch.cuda.empty_cache()
                    continue
                except Exception:  # an arm that fails leaves the others
                    self.write({"tuned": job.tuned, "arm": name, "error": traceback.format_exc()[-1500:]})
                break

    def _choice(self, job: Job, arm: str) -> Path:
        cell = "+".join(" ".join(name.split()[:3]) for name in job.tuned)
        return self.work / "chosen" / f"{cell}, {arm}".replace(" ", "-")

    def chosen(self, job: Job, arm: str) -> float | None:
        """Return the strength that validation chose on the first seed; None for that seed."""
        if job.tuned[0].endswith(" 0"):
            return None
        return float(self._choice(job, arm).read_text())

    def choose(self, job: Job, arm: str, strength: float) -> None:
        file = self._choice(job, arm)
        file.with_suffix(".part").write_text(f"{strength}")
        os.replace(file.with_suffix(".part"), file)

    def ready(self, job: Job) -> bool:
        if not job.arms:
            return True
        chosen = job.tuned[0].endswith(" 0") or all(self._choice(job, arm).exists() for arm in job.arms)
        return chosen and all(self.file(name).exists() for name in job.tuned)

    def mark(self, folder: str, job: Job) -> Path:
        return self.work / folder / f"{zlib.crc32(job.name.encode()):x}"

    def take(self) -> Iterator[Job]:
        """Yield jobs that nobody else does."""
        left = [
            job for job in jobs(self.args.groups) if fits(job, self.args.only) and not self.mark("done", job).exists()
        ]
        while left and not self.late():
            for job in left:
                if not self.ready(job):
                    continue
                left.remove(job)
                try:
                    os.close(os.open(self.mark("claims", job), os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    break
                yield job
                break
            else:
                time.sleep(0.2)


def dtype_on(device: torch.device) -> torch.dtype:
    """Return what models run in: on a processor float32, as its products of bfloat16 may be slow."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def answer(args: argparse.Namespace) -> None:
    """Have the base answer the questions that tell how far a model is from it, greedily; once a work folder."""
    import transformers

    file = Path(args.work) / CHATS
    if file.exists():
        return
    with gzip.open(args.data) as stream:
        asked = json.load(stream)["asked"]
    dtype = dtype_on(torch.device(args.device))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(args.device)
    found = {}
    for split, prompts in asked.items():
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(one)) + one for one in prompts], device=args.device)
        mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in prompts], device=args.device)
        end = model.generation_config.eos_token_id
        written = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=ANSWER_TOKENS, pad_token_id=0
        )[:, length:].tolist()
        rows = []
        for prompt, own in zip(prompts, written, strict=True):
            own = own[: own.index(end) + 1] if end in own else own
            rows.append([prompt + own, [-100] * len(prompt) + [0] * len(own)])
        found[split] = {"kind": "chats", "rows": rows}
    file.write_text(json.dumps(found))


def value(figures: Mapping[str, float], base: Mapping[str, float]) -> float:
    """Return the H-score: the harmonic mean of the mean target accuracy and of retention."""
    target = fmean(figures[name] for name in figures if name.startswith("target") and not name.endswith("loss"))
    return h_score([fmean(retained(figures, base).values())], [target])


def retained(figures: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """Return what is left of each ability, in percent of the base's."""
    found = {}
    for name, figure in figures.items():
        if name.startswith("target") or name.endswith((" same", " loss")):
            continue
        if name == "chats":
            found[name] = 100 * float(torch.tensor(-figure).exp())
        elif name in ("prose", "docs", "code"):
            found[name] = 100 * float(torch.tensor(base[name] - figure).exp())
        else:
            found[name] = 100 * figure / (base[name] or 1.0)
    return found


def size_of(stacks: Stacks) -> int:
    return sum(stack.nbytes for stack in stacks.values())


def fits(job: Job, only: str) -> bool:
    return not only or all(only in name for name in job.tuned)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", required=True, help="folder of fine-tunes; a second run goes on from there")
    parser.add_argument("--scores", required=True, help="file of lines")
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", default="", help="part of the names of the fine-tunes that are wanted")
    parser.add_argument("--groups", type=int, nargs="*", default=[*range(len(GROUPS))], help="of arms, and their order")
    parser.add_argument("--rates", type=float, default=1.0, help="times the rates at which SmolLM2-135M forgets")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of statistics that each process holds")
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.until:  # one of the processes
        worker = Worker(args)
        for job in worker.take():
            start = time.time()
            print(f"{job.name}", flush=True)
            try:
                worker.run(job)
                if not worker.late():
                    worker.mark("done", job).touch()
                if worker.device.type == "cuda":
                    torch.cuda.empty_cache()  # a dozen processes share it
            except Exception:
                worker.write({"tuned": job.tuned, "arm": ", ".join(job.arms), "error": traceback.format_exc()[-1500:]})
                traceback.print_exc()
            print(f"{job.name}: {time.time() - start:.1f} s", flush=True)
        return
    work = Path(args.work)
    for folder in ("tuned", "chosen", "claims", "done", "logs"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    for claim in (work / "claims").iterdir():
        claim.unlink()
    until = time.time() + args.seconds
    answer(args)
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, *sys.argv[1:], "--until", f"{until}"]
    running = []
    for number in range(args.processes):
        log = (work / "logs" / f"{number}.log").open("ab")
        running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    while any(one.poll() is None for one in running) and time.time() < until + 8:
        time.sleep(0.3)
    for one in running:
        if one.poll() is None:
            one.kill()
    print(f"{args.seconds - (until - time.time()):.0f} s", flush=True)


if __name__ == "__main__":
    main()
