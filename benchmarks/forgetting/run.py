"""How much a repaired fine-tune keeps of both sides: each method at its best strength, on fine-tunes that forgot.

    python benchmarks/forgetting/run.py train --task tagging --kind full --seed 0
    python benchmarks/forgetting/run.py score --task tagging --kind full --seed 0 --arm 'ada*'
    python benchmarks/forgetting/run.py table

Without `--task`, `--kind`, `--seed` and `--arm` each takes all there are. What is known is not done again: any piece
may be run at any time, killed and repeated.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from arms import IMAGES, MERGED, TEXT
from choose import run_arm
from fuse import ArmError, Files
from score import SPLITS, Scores
from table import fits, markdown
from tasks import KINDS, TASKS
from train import train, tuned_folder

SEEDS = (0, 1, 2)


def score_arms(work: Path, task: str, kind: str, seed: int, patterns: Sequence[str]) -> int:
    """Score every arm whose name fits a pattern; return how many failed."""
    failed = 0
    for part in TASKS[task].parts or (task,):
        if not tuned_folder(work, part, kind, seed).exists():
            print(f"{part} {kind} {seed} is not trained yet", file=sys.stderr)
            return 1
    for split in SPLITS:
        Scores(work).base(task, split)
    for arm in TASKS[task].arms.values():
        if fits(arm.name, patterns):
            try:
                run_arm(work, arm, task, kind, seed)
            except ArmError as error:
                failed += 1
                print(f"{task} {kind} {seed} {arm.name}: {error}", file=sys.stderr, flush=True)
    Files(work, task, kind, seed).remove_full()
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score", "table", "arms"))
    parser.add_argument("--work", type=Path, default=Path("forgetting-work"), help="folder of all that is made")
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--arm", nargs="+", default=["*"], help="globs over the names that `arms` lists")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    seeds = SEEDS if args.seed is None else (args.seed,)
    tasks = (args.task,) if args.task else [name for name, task in TASKS.items() if not task.only_named]
    pairs = [
        (task, kind)
        for task, kind in product(tasks, (args.kind,) if args.kind else KINDS)
        if kind in TASKS[task].learning_rate
    ]
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "arms":
        for arms in (TEXT | IMAGES, MERGED):
            print(*(f"{arm.name:32} {arm.command}" for arm in arms.values()), sep="\n", end="\n\n")
        return
    if args.what == "table":
        words = {"full": "all weights", "mild": "all weights, mildly", "lora": "LoRA"}
        titles = {pair: f"{pair[0]}, {words[pair[1]]}" for pair in pairs}
        print(markdown(Scores(args.work).all(), pairs, titles, args.arm))
        return
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    failed = 0
    for seed, (task, kind) in product(seeds, pairs):
        if args.what == "train" and not TASKS[task].parts:
            print(train(args.work, task, kind, seed), flush=True)
        elif args.what == "score":
            failed += score_arms(args.work, task, kind, seed, args.arm)
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
