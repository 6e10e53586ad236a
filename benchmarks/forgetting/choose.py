"""Strengths by validation: the H-score of target accuracy and general retention, by climbing along a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from arms import Arm
from climbing import climb
from fuse import fuse_and_score
from score import Scores
from sculpt.evaluate.scores import h_score
from tasks import TASKS

FIRST_SEED = 0  # whose validation chooses the strengths, for the other seeds too, and whose curves are scored on test


def retention(row: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """Return 100·(the base's perplexity)/(this perplexity): 100 is the base, less is forgetting.

    The mean over the sources that the task scores on validation: prose, and names of pictures if it has any.
    """
    sources = TASKS[base["task"]].scored["validation"]
    return fmean(100 * base[f"{source} perplexity"] / row[f"{source} perplexity"] for source in sources)


def h_of(row: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """Return the harmonic mean of target accuracy and retention, both in percent."""
    return h_score([retention(row, base)], [row["target accuracy"]])


def best_strength(rows: Sequence[dict[str, Any]], base: Mapping[str, Any], arm: str, tuned: Mapping[str, Any]) -> Any:
    """Return the strength of the best validation score that an arm has, None where none is known."""
    known = [r for r in rows if r["arm"] == arm and r["split"] == "validation" and tuned.items() <= r.items()]
    return max(known, key=lambda row: h_of(row, base))["strength"] if known else None


def run_arm(work: Path, arm: Arm, task: str, kind: str, seed: int) -> None:
    """Find the arm's strength on validation, and score it on test; whatever is known is not done again."""
    scores, tuned = Scores(work), {"task": task, "kind": kind, "seed": seed}

    def scored(strength: float | None, split: str) -> dict[str, Any]:
        key = {**tuned, "arm": arm.name, "strength": strength, "split": split}
        known = scores.find(**key)
        if known is None:
            known = scores.add({**key, **fuse_and_score(work, arm, task, kind, seed, strength, split)})
            print(_line(known), flush=True)
        return known

    if not arm.grid:
        scored(None, "test")
        return
    base = scores.base(task, "validation")
    chosen = arm.grid[0] if len(arm.grid) == 1 else None
    if chosen is None and seed != FIRST_SEED:
        chosen = best_strength(scores.all(), base, arm.name, {"task": task, "kind": kind, "seed": FIRST_SEED})
    if chosen is None:
        chosen = climb(arm.grid, arm.start, lambda s: h_of(scored(s, "validation"), base))
    for strength in arm.grid if arm.curve and seed == FIRST_SEED and kind == "full" else (chosen,):
        scored(strength, "test")


def _line(row: Mapping[str, Any]) -> str:
    name = f"{row['task']} {row['kind']} {row['seed']} {row['arm']} {row['strength'] or ''}"
    general = "".join(
        f"{source} {row[f'{source} perplexity']:6.2f} {row[f'{source} accuracy']:5.2f} "
        for source in TASKS[row["task"]].scored["validation"]
    )
    return (
        f"{name:62} {row['split']:10} target {row['target accuracy']:5.1f} {general} "
        f"fuse {row['fuse seconds']:.0f} s, score {row['seconds']:.0f} s"
    )
