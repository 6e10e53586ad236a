"""Markdown tables of the campaign's lines: `python -m sculpt.benchmarks.forgetting.gpu.table scores.jsonl`."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from .campaign import retained, value

OURS = ("two-sided", "two-sided, no samples", "two-sided by answers", "two-sided by gradients")
POINTS = ("facts", "next", "opposites", "french")  # abilities that are shares of right answers
Figures = dict[str, float]


@dataclass(frozen=True)
class Cell:
    """A task or several, the form that it is asked in, and the kind of fine-tune; scores over seeds.

    Attributes:
        arms: By name, of each seed the strength and the figures, as `compared` gives them.
    """

    name: str
    arms: Mapping[str, Mapping[int, tuple[float | None, Figures]]]

    def mean(self, arm: str, figure: str) -> float:
        return fmean(found[figure] for _, found in self.arms[arm].values())

    def told(self, arm: str, figure: str, digits: int = 1) -> str:
        values = [found[figure] for _, found in self.arms[arm].values()]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{fmean(values):.{digits}f}{spread}"


def compared(figures: Figures, base: Figures, ends: Mapping[str, tuple[float, float]]) -> Figures:
    """Return what a model keeps of base and fine-tunes.

    Args:
        ends: Of each target the accuracy of the base and of its fine-tune.
    """
    kept = retained(figures, base)
    gains = [100 * (figures[name] - start) / ((end - start) or 1.0) for name, (start, end) in ends.items()]
    target = fmean(figures[name] for name in ends)
    prose = math.exp(figures["prose"] - base["prose"])
    return {
        "target": target,
        "gain": fmean(gains),
        "prose": prose,
        "perplexity": math.exp(figures["prose"]),
        "retention": fmean(kept.values()),
        "worst": min(figures[name] - base[name] for name in POINTS),
        "chats": figures["chats"],
        "same": figures["chats same"],
        "H": value(figures, base),
        "H of prose": 2 / (1 / max(target, 1e-9) + prose / 100),
    }


def cells(rows: Sequence[Mapping[str, Any]]) -> Iterator[Cell]:
    """Yield the cells that were scored on test."""
    base = {tuple(row["tasks"]): row["figures"] for row in rows if row["arm"] == "base" and row["split"] == "test"}
    tests = [row for row in rows if row.get("split") == "test" and row["arm"] != "base"]
    ends = {row["tuned"][0]: row["figures"] for row in tests if row["arm"] == "fine-tune"}
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for row in tests:
        tuned = row["tuned"]
        tasks = tuple(" ".join(name.split()[:2]) for name in tuned)
        # A merge's parts are scored alone with their own fine-tune; classing's own end is in the merges' base alone.
        if tasks not in base or any(name not in ends for name in tuned if not name.startswith("classing")):
            continue
        own = {}
        for name, task in zip(tuned, tasks, strict=True):
            key = f"target {task}"
            end = ends.get(name, {}).get(key)
            if end is None:
                continue
            own[key] = (base[tasks][key], end)
        cell = " + ".join(name.split()[0] for name in tuned) + " " + " ".join(tuned[0].split()[1:3])
        seed = int(tuned[0].split()[3])
        figures = compared(row["figures"], base[tasks], own)
        if len(own) < len(tuned):  # the mean target is of all, the gain of those whose fine-tune was scored
            figures["target"] = fmean(row["figures"][f"target {task}"] for task in tasks)
        found.setdefault(cell, {}).setdefault(row["arm"], {})[seed] = (row["strength"], figures)
    for name, arms in found.items():
        yield Cell(name, arms)


COLUMNS = {"target": 1, "gain": 1, "prose": 3, "retention": 1, "worst": 1, "chats": 2, "same": 0, "H": 1}


def lines_of(cell: Cell) -> Iterator[str]:
    """Yield a cell's table, the best first."""
    yield f"### {cell.name}"
    yield ""
    yield f"| arm | strength | {' | '.join(COLUMNS)} | seeds |"
    yield "|---|---|" + "---:|" * (len(COLUMNS) + 1)
    for arm in sorted(cell.arms, key=lambda name: -cell.mean(name, "H")):
        strength = next(iter(cell.arms[arm].values()))[0]
        told = " | ".join(cell.told(arm, figure, digits) for figure, digits in COLUMNS.items())
        yield f"| {arm} | {strength:g} | {told} | {len(cell.arms[arm])} |"
    yield ""


def summary(found: Sequence[Cell], reference: str) -> Iterator[str]:
    """Yield each arm's means over the cells that have it, and how far it is ahead of another."""
    names = list(dict.fromkeys(arm for cell in found for arm in cell.arms))
    yield f"| arm | {' | '.join(COLUMNS)} | H − {reference}: mean | least | cells |"
    yield "|---|" + "---:|" * (len(COLUMNS) + 3)

    def ahead(arm: str) -> list[float]:
        gaps = []
        for cell in found:
            own, other = cell.arms.get(arm, {}), cell.arms.get(reference, {})
            seeds = own.keys() & other.keys()
            if seeds:
                gaps.append(fmean(own[seed][1]["H"] - other[seed][1]["H"] for seed in seeds))
        return gaps

    for arm in sorted(names, key=lambda arm: -fmean(ahead(arm) or [-99.0])):
        own = [cell for cell in found if arm in cell.arms]
        told = " | ".join(f"{fmean(c.mean(arm, figure) for c in own):.{digits}f}" for figure, digits in COLUMNS.items())
        gaps = ahead(arm) or [math.nan]
        yield f"| {arm} | {told} | {fmean(gaps):+.1f} | {min(gaps):+.1f} | {len(own)} |"
    yield ""


def first(found: Sequence[Cell]) -> str:
    """Return in how many cells a two-sided arm has the best H-score."""
    best = [max(cell.arms, key=lambda arm, cell=cell: cell.mean(arm, "H")) for cell in found]
    won = sum(arm in OURS for arm in best)
    lost = "; ".join(f"{c.name}: {arm}" for c, arm in zip(found, best, strict=True) if arm not in OURS)
    return f"two-sided first in {won} of {len(found)} cells{f' (not in {lost})' if lost else ''}"


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    found = list(cells([row for row in rows if "error" not in row]))
    groups = {
        "fine-tunes": ([cell for cell in found if "+" not in cell.name], "interpolation"),
        "merges": ([cell for cell in found if "+" in cell.name], "regmean"),
    }
    for title, (own, reference) in groups.items():
        if own:
            print(f"## {title}\n", *summary(own, reference), first(own), "", sep="\n")
    for cell in found:
        print(*lines_of(cell), sep="\n")


if __name__ == "__main__":
    main()
