"""Run a rival: `python -m sculpt.benchmarks.forgetting.rivals dg-hard base/ sft/ --set threshold=0.5 -o out/`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare

from . import RIVALS
from .measure import load


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RIVALS)
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path, nargs="+")
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--target", type=Path, nargs="+", help="statistics of each fine-tune on samples of its task")
    parser.add_argument("--general", type=Path, help="statistics of the base on general samples")
    parser.add_argument("--seed", type=int, help="has no effect: nothing is random")
    parser.add_argument("--output", "-o", type=Path, required=True)
    args = parser.parse_args(arguments)
    kind = RIVALS[args.name]
    types = {field.name: type(field.default) for field in fields(kind)}
    chosen = dict(pair.split("=", 1) for pair in args.set)
    method = kind(**{option: types[option](value) for option, value in chosen.items()})
    prepared = prepare(args.base, args.tuned, output=args.output, method=method)
    targets = args.target or [None] * len(args.tuned)
    known = [load(file) for file in (args.general, *targets)]
    curvature: dict[str, tuple[Curvature | None, ...]] = {
        step.name: tuple(side.get(own or "") for side, own in zip(known, step.curvatures, strict=True))
        for step in prepared.plan.steps
        if step.action == "fuse"
    }
    execute(prepared, curvature=curvature if args.general or args.target else None)


if __name__ == "__main__":
    main()
