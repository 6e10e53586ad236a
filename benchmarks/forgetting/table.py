"""Markdown tables of what was scored on test: mean ± deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from operator import itemgetter
from typing import Any

from choose import FIRST_SEED, best_strength, h_of, retention
from tasks import TASKS

Row = dict[str, Any]


def fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def figures(scored: Mapping[str, Sequence[str]]) -> dict[str, Callable[[Row], float]]:
    """Return the columns of general ability: accuracies, and the perplexities that strengths are chosen by."""
    found: dict[str, Callable[[Row], float]] = {}
    for source in scored["test"]:
        if source in scored["validation"]:
            found[f"{source} ppl"] = itemgetter(f"{source} perplexity")
        found[f"{source} acc"] = itemgetter(f"{source} accuracy")
    return found


class Table:
    """The test scores of one task and kind, with those of base and fine-tune to compare with."""

    def __init__(self, rows: Sequence[Row], task: str, kind: str) -> None:
        self.arms = TASKS[task].arms
        self.parts = [Table(rows, part, kind) for part in TASKS[task].parts]
        mine = [row for row in rows if row["task"] == task]
        self.base = {row["split"]: row for row in mine if row["arm"] == "base"}
        self.rows = [row for row in mine if row.get("kind") == kind]
        self.tests = [row for row in self.rows if row["split"] == "test"]
        self.tuned = {row["seed"]: row for row in self.tests if row["arm"] == "fine-tune"}
        self.columns: dict[str, Callable[[Row], float]] = {
            **{f"{part} acc": itemgetter(f"{part} accuracy") for part in TASKS[task].parts},
            "target acc": lambda row: row["target accuracy"],
            "gain kept %": self.gain_kept,
            **figures(TASKS[task].scored),
            "retention %": lambda row: retention(row, self.base["test"]),
            "H-score": lambda row: h_of(row, self.base["test"]),
        }

    def gain_kept(self, row: Row) -> float:
        """Return how much of what the fine-tune of this seed gained is kept, in percent; of several the mean."""
        if row["arm"] == "base":
            return 0.0
        if self.parts:
            names = TASKS[row["task"]].parts
            own = [{**row, "target accuracy": row[f"{part} accuracy"]} for part in names]
            return statistics.fmean(table.gain_kept(one) for table, one in zip(self.parts, own, strict=True))
        start = self.base["test"]["target accuracy"]
        end = self.tuned.get(row.get("seed"))
        return 100 * (row["target accuracy"] - start) / (end["target accuracy"] - start) if end else float("nan")

    def chosen(self, patterns: Sequence[str]) -> Iterator[tuple[str, str, list[Row]]]:
        """Yield arm, strengths, and the test score at each seed's strength, that validation chose."""
        if "test" in self.base and fits("base", patterns):
            yield "base", "", [self.base["test"]]
        for arm in self.arms.values():
            if not fits(arm.name, patterns):
                continue
            found = [row for row in self.tests if row["arm"] == arm.name and row["strength"] == self._strength(row)]
            if found:
                strengths = ", ".join(dict.fromkeys(f"{r['strength']:g}" for r in found if r["strength"] is not None))
                yield arm.name, strengths, sorted(found, key=lambda row: row["seed"])

    def _strength(self, row: Row) -> float | None:
        if not self.arms[row["arm"]].grid:
            return None
        if len(self.arms[row["arm"]].grid) == 1:
            return self.arms[row["arm"]].grid[0]
        found = (
            best_strength(self.rows, self.base["validation"], row["arm"], {"seed": seed})
            for seed in (row["seed"], FIRST_SEED)
        )
        return next((strength for strength in found if strength is not None), None)

    def curves(self, patterns: Sequence[str]) -> Iterator[tuple[str, str, list[Row]]]:
        """Yield arm, strength, and the test scores of all seeds at it, for every strength."""
        for arm in self.arms.values():
            found = [row for row in self.tests if row["arm"] == arm.name]
            for strength in arm.grid if arm.curve and fits(arm.name, patterns) else ():
                at = [row for row in found if row["strength"] == strength]
                if at:
                    yield arm.name, f"{strength:g}", at

    def lines(self, entries: Iterable[tuple[str, str, list[Row]]]) -> Iterator[str]:
        heads = ["arm", "strength", *self.columns, "seeds", "fuse s"]
        yield f"| {' | '.join(heads)} |"
        yield "|---|---|" + "---:|" * (len(heads) - 2)
        for name, strengths, rows in entries:
            cells = [_mean(map(value, rows)) for value in self.columns.values()]
            seconds = [row["fuse seconds"] for row in rows if "fuse seconds" in row]
            cost = f"{statistics.mean(seconds):.0f}" if seconds else ""
            yield f"| {name} | {strengths} | {' | '.join(cells)} | {len(rows)} | {cost} |"


def _mean(values: Iterable[float]) -> str:
    known = list(values)
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def markdown(
    rows: Sequence[Row],
    pairs: Iterable[tuple[str, str]],
    titles: Mapping[tuple[str, str], str],
    patterns: Sequence[str],
) -> str:
    """Return a table of the chosen strengths and one of the curves for each task and kind that was scored."""
    parts: list[str] = []
    for pair in pairs:
        table = Table(rows, *pair)
        if not table.tests:
            continue
        parts += [f"### {titles[pair]}", "", *table.lines(table.chosen(patterns)), ""]
        curves = list(table.curves(patterns))
        if curves:
            parts += [f"{titles[pair]}: every strength, on test", "", *table.lines(curves), ""]
    return "\n".join(parts)
