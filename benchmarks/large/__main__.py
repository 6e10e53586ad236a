"""How much a repaired fine-tune keeps of both sides, on a model of your own: each method at its best strength.

    python -m sculpt.benchmarks.large --base org/base --tuned org/sft --data train.jsonl \\
        --suite test.yaml --choose-on validation.yaml --work work/ -o table.md

`README.md` beside this file says what is wanted. What is known is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import sculpt
from sculpt.api import prepare_fuse
from sculpt.benchmarks.forgetting.climbing import climb
from sculpt.benchmarks.forgetting.rivals import measure
from sculpt.evaluate.evaluate import SuiteScores, score_suite
from sculpt.evaluate.live_fuse import LiveFuse
from sculpt.evaluate.scores import h_score
from sculpt.evaluate.suite import read_suite
from sculpt.fusion.arithmetic.curvature import UNMEASURED, Curvatures
from sculpt.fusion.arithmetic.two_sided import counted_together
from sculpt.fusion.methods import Method
from sculpt.fusion.run.calibration import GENERAL, SHIPPED
from sculpt.fusion.table import Table

from .arms import ARMS, Arm

FROM_BACKWARDS = ("fisher", "gradients")
Row = dict[str, Any]


class Comparison:
    """A base and its fine-tune behind one model, and what is known of its arms."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.work: Path = args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.file = self.work / "scores.jsonl"
        self.suites = {"validation": read_suite(args.choose_on), "test": read_suite(args.suite)}
        settings = sculpt.Settings(device=args.device, protection=sculpt.Protection())
        self.prepared = prepare_fuse(
            args.base, args.tuned, output=self.work / "out", method=sculpt.AdaDare(), settings=settings, overwrite=True
        )

    @cached_property
    def live(self) -> LiveFuse:
        return LiveFuse(self.prepared, None, device=self.args.device, dtype=self.args.dtype)

    def measured(self, what: str, side: str) -> Path:
        """Return a file of statistics, measured unless it is there: of the fine-tune on the target's samples, or of the
        base on general ones."""
        args, file = self.args, self.work / f"{what}-{side}.safetensors"
        if file.exists():
            return file
        model, data = (args.tuned, args.data) if side == "target" else (args.base, args.general)
        data = GENERAL if str(data) == SHIPPED else data
        if what in ("full", "answers"):
            # Of an adapter or a fine-tune of some layers no more than those.
            changed = args.base if side == "target" else None
            sculpt.calibrate(
                model,
                data=data,
                samples=args.samples,
                full=["*"],
                only_changed=changed,
                count="completion" if what == "answers" else "all",
                device=args.device,
                output=file,
            )
            return file
        count = args.backward_samples if what in FROM_BACKWARDS else args.samples
        given = [what, str(model), "--data", str(data), "--samples", str(count), "--device", args.device]
        given += ["--base", str(args.base)] if side == "target" else []
        given += ["--like", str(self.measured("full", side))] if what == "gradients" else []
        measure.main([*given, "-o", str(file)])
        return file

    def curvature(self, arm: Arm) -> Mapping[str, Curvatures] | None:
        """Return what an arm is told of base and fine-tune."""
        if arm.wants == "nothing":
            return None
        kind = arm.wants if arm.wants in ("magnitudes", "fisher") else "full"
        general = counted_together(measure.load(self.measured(kind, "general")))
        target: Mapping[str, Any] | None = None
        if arm.wants in ("both", "fisher"):
            target = measure.load(self.measured(kind, "target"))
        elif arm.wants in ("answers", "gradients"):
            target = measure.load(self.measured(arm.wants, "target"))
        target = None if target is None else counted_together(target)
        return {
            step.name: (
                general.get(step.curvatures[0] or ""),
                UNMEASURED if target is None else target.get(step.curvatures[1] or ""),
            )
            for step in self.prepared.plan.steps
            if step.action == "fuse"
        }

    def rows(self) -> list[Row]:
        if not self.file.exists():
            return []
        return [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]

    def scored(self, name: str, strength: float | None, split: str, method: Method, arm: Arm | None = None) -> Row:
        """Return the scores of a method on a suite, known or made."""
        key = {"arm": name, "strength": strength, "split": split}
        known = next((row for row in self.rows() if key.items() <= row.items()), None)
        if known is not None:
            return known
        start = time.monotonic()
        protection = arm.protection(strength) if arm and arm.protection and strength is not None else None
        self.live.set(method, None, protection)
        fused = time.monotonic()
        found = score_suite(self.live.live, self.suites[split], batch_size=self.args.batch_size)
        seconds = {"fuse seconds": fused - start, "score seconds": time.monotonic() - fused}
        row = {**key, "target": fmean(found.side("target")), "general": _general(found), **seconds}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        told = ", ".join(f"{task} {score:.2f}" for task, score in found.measures.items())
        print(f"{name} {'' if strength is None else strength} {split}: {told}", flush=True)
        return row

    def end(self, name: str, split: str) -> Row:
        """Return the scores of the base or of the fine-tune."""
        return self.scored(name, None, split, sculpt.TaskArithmetic(scale=float(name == "fine-tune")))

    def run(self, arm: Arm) -> Row:
        """Choose the arm's strength on one suite; return its scores on the other."""
        self.live.curvature = self.curvature(arm)
        base = self.end("base", "validation")

        def value(strength: float) -> float:
            return _h(self.scored(arm.name, strength, "validation", arm.method(strength), arm), base)

        chosen = climb(arm.grid, arm.start, value)
        return self.scored(arm.name, chosen, "test", arm.method(chosen), arm)


def _general(found: SuiteScores) -> dict[str, float]:
    return {task.name: task.score for task in found.tasks if task.side == "pretrained"}


def _retention(row: Row, base: Row) -> float:
    """Return what is left of the base's scores, in percent: the mean over tasks."""
    return fmean(100 * row["general"][name] / (score or 1.0) for name, score in base["general"].items())


def _h(row: Row, base: Row) -> float:
    return h_score([_retention(row, base)], [row["target"]])


def table_of(rows: Sequence[Row]) -> Table:
    """Return the table of test scores; the base's and the fine-tune's come first."""
    base, tuned, *_ = rows
    gain = tuned["target"] - base["target"] or 1.0
    columns = ["method", "strength", "target", "gain kept %", *base["general"], "retention %", "H-score", "fuse s"]
    lines = []
    for row in rows:
        figures = [row["target"], 100 * (row["target"] - base["target"]) / gain, *row["general"].values()]
        figures += [_retention(row, base), _h(row, base)]
        strength = "–" if row["strength"] is None else f"{row['strength']:g}"
        lines.append([row["arm"], strength, *(f"{x + 0.0:.1f}" for x in figures), f"{row['fuse seconds']:.0f}"])
    return Table(columns=columns, rows=lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a folder, or a name on the hub that is cached")
    parser.add_argument("--tuned", required=True, help="the fine-tune or adapter")
    parser.add_argument("--data", required=True, type=Path, help="samples of the target task, not those of the suites")
    parser.add_argument("--general", default=SHIPPED, help="general samples; default: the general set that ships")
    parser.add_argument("--suite", required=True, type=Path, help="what is reported, as for `sculpt eval`")
    parser.add_argument("--choose-on", required=True, type=Path, help="the same tasks on other samples")
    parser.add_argument("--arm", nargs="+", default=["*"], help=f"globs over: {', '.join(arm.name for arm in ARMS)}")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--backward-samples", type=int, default=64, help="where each takes a backward")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of the model that is scored")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--work", type=Path, default=Path("large-work"))
    parser.add_argument("--output", "-o", type=Path, nargs="+", default=[], help=".md, .tex or .csv")
    args = parser.parse_args(arguments)
    comparison = Comparison(args)
    found = [comparison.end(name, "test") for name in ("base", "fine-tune")]
    for arm in ARMS:
        if any(fnmatch(arm.name, glob) for glob in args.arm):
            found.append(comparison.run(arm))
    table = table_of(found)
    print(table.markdown())
    for file in args.output:
        table.write(file, overwrite=True)


if __name__ == "__main__":
    main()
