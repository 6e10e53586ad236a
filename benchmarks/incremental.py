"""Domains one after another: every way to merge their adapters, and the source's two tables."""

from __future__ import annotations

import json
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from sculpt.fusion.checkpoint import Source
from sculpt.fusion.methods import DareTies, Method, TaskArithmetic, Ties
from sculpt.learn.buffer import BufferSample
from sculpt.learn.continual import learn_continually
from sculpt.learn.merged_model import MergedModel
from sculpt.learn.parts import LinearMerge
from sculpt.learn.training import Learning, learn, score

FIXED = BOUNDS = (1.0, 3.0, 5.0)
METHODS = ("task-arithmetic", "ties", "dare-ties")


def add_options(parser: ArgumentParser) -> None:
    """Add what learning and merging are told."""
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of learning coefficients")
    parser.add_argument("--step-size", type=float, default=0.3)
    parser.add_argument("--density", type=float, default=0.2, help="of TIES and DARE-TIES")
    parser.add_argument("--json", type=Path, help="write all figures to this file")


def merge_of(name: str, density: float, seed: int) -> LinearMerge:
    made: dict[str, Method] = {
        "task-arithmetic": TaskArithmetic(),
        "ties": Ties(density=density, election="unweighted"),
        "dare-ties": DareTies(sparsity=1 - density, election="unweighted"),
    }
    return LinearMerge(method=made[name], seed=seed)


def run_merges(
    base: Source,
    adapters: Sequence[Source],
    buffer: Sequence[BufferSample],
    test: Sequence[BufferSample],
    domains: Sequence[str],
    args: Namespace,
    seed: int,
    *,
    prepare: Callable[[Any], None] = lambda _model: None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return the accuracy on each domain of the base, the adapters alone and every merge; one seed.

    Args:
        prepare: Is given each model before it is used.
    """
    results: dict[str, Any] = {}

    def note(name: str, merged: MergedModel) -> None:
        groups = {d: [sample for sample in test if sample.domain == d] for d in domains}
        results[name] = {d: 100 * score(merged, group).accuracy for d, group in groups.items()}
        say(f"{name:32} {statistics.mean(results[name].values()):5.1f}")

    for method in METHODS:
        merged = MergedModel(base, merge_of(method, args.density, seed))
        prepare(merged.model)
        if method == METHODS[0]:
            note("base", merged)
            merged.use(adapters)
            for k, domain in enumerate(domains):
                merged.set([float(i == k) for i in range(len(adapters))])
                note(f"adapter of {domain}", merged)
        for weight in FIXED:
            merged.use(adapters)
            merged.set([weight] * len(adapters))
            note(f"{method} fixed {weight:g}", merged)
        for bound in BOUNDS:
            learning = Learning(b_max=bound, steps=args.steps, learning_rate=args.step_size)
            if method == "ties" and bound == 3:
                known = learn_continually(merged, adapters, buffer, learning, test=test)
                results["experiences"] = [experience.as_json() for experience in known]
                found = known[-1].coefficients
            else:
                found = learn(merged, adapters, buffer, learning).coefficients
            note(f"{method} adaptive {bound:g}", merged)
            results[f"{method} adaptive {bound:g} coefficients"] = found.as_json()
    return results


def show(results: Sequence[dict[str, Any]], domains: Sequence[str], kind: str, file: Path | None) -> None:
    """Print the two tables, and write all figures to a file where one is named."""

    def spread(values: Sequence[float], digits: int = 1) -> str:
        deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{deviation}"

    def cell(name: str) -> str:
        return spread([statistics.mean(found[name].values()) for found in results])

    print(f"\nMean accuracy over the {len(domains)} {kind}, percent, after the last; {len(results)} seeds")
    print(f"base {cell('base')}; adapters alone " + ", ".join(cell(f"adapter of {d}") for d in domains))
    own = [statistics.mean(found[f"adapter of {d}"][d] for d in domains) for found in results]
    print(f"each adapter on its own domain {spread(own)}\n")
    columns = [f"{way} {value:g}" for way, values in (("fixed", FIXED), ("adaptive", BOUNDS)) for value in values]
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for method in METHODS:
        print(f"| {method} | " + " | ".join(cell(f"{method} {column}") for column in columns) + " |")
    print(f"\nTIES, adaptive, b at most 3: coefficients and accuracy after each experience, {len(results)} seeds\n")
    print("| + | α | b | " + " | ".join(domains) + " |\n|---|---|---|" + "---|" * len(domains))
    for same in zip(*(found["experiences"] for found in results), strict=True):
        alphas = zip(*(experience["coefficients"]["alpha"] for experience in same), strict=True)
        b = spread([experience["coefficients"]["b"] for experience in same], 2)
        scores = [
            spread([100 * one["scores"][d]["accuracy"] for one in same]) if d in same[0]["scores"] else ""
            for d in domains
        ]
        alpha = ", ".join(spread(weights, 2) for weights in alphas)
        print(f"| {same[0]['domain']} | {alpha} | {b} | " + " | ".join(scores) + " |")
    alphas = [found[f"{m} adaptive {b:g} coefficients"]["alpha"] for found, m, b in product(results, METHODS, BOUNDS)]
    apart = [max(alpha) - min(alpha) for alpha in alphas]
    print(f"\nlargest α − smallest α of a run: {min(apart):.2f} to {max(apart):.2f}")
    if file is not None:
        file.write_text(json.dumps(list(results), indent=1, sort_keys=True) + "\n")
