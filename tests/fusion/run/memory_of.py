"""Run a fuse, and print what it adds to the process's private memory beside what it is billed: see test_memory.py.

Statistics, torch and compiled kernels are there before, and do not count.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import sculpt
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.methods import METHODS
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import Prepared, prepare

BUDGET = 600_000_000


def anonymous() -> int:
    """Return the bytes of private memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def statistics(prepared: Prepared, width: int) -> dict[str, tuple[Curvature, ...]]:
    """Return full statistics of every model, and have torch loaded with what it keeps."""
    import torch

    torch.linalg.cholesky_ex(torch.eye(64, dtype=torch.float64))
    _ = torch.ones(64, 64) @ torch.ones(64, 64)
    x = np.random.default_rng(0).standard_normal((width, width)).astype("f4")
    gram = x.T @ x
    term = np.diagonal(gram)[None].astype("f8")
    return {
        step.name: tuple(
            Curvature(terms=(term,), num_tokens=width, gram=gram.copy()) for _ in range(len(step.tuned) + 1)
        )
        for step in prepared.plan.steps
    }


def tied(prepared: Prepared) -> dict[str, tuple[Curvature, ...]]:
    """Return diagonals as of embeddings that are output heads too: one number a row, and one a column."""
    found = {}
    for step in prepared.plan.steps:
        rows, columns = (np.random.default_rng(size).random(size) for size in step.shape)
        one = Curvature(terms=(rows[:, None], columns[None]), num_tokens=len(rows))
        found[step.name] = (one,) * (len(step.tuned) + 1)
    return found


def main() -> None:
    """Run it."""
    folder, method, num_tuned = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    options, protection = json.loads(sys.argv[4]), json.loads(sys.argv[5])
    settings = sculpt.Settings(
        threads=int(sys.argv[6]) if len(sys.argv) > 6 else 3,
        memory=BUDGET,
        protection=sculpt.Protection(**protection) if protection is not None else None,
    )
    kind = METHODS[method](**options)
    full = kind.loads_torch or protection is not None

    def made(models: Path) -> tuple[Prepared, dict[str, tuple[Curvature, ...]]]:
        tuned = [models / f"{k}.safetensors" for k in range(1, num_tuned + 1)]
        prepared = prepare(models / "0.safetensors", tuned, output=models / "out", method=kind, settings=settings)
        return prepared, statistics(prepared, prepared.plan.steps[0].shape[-1]) if full else tied(prepared)

    warm, curvature = made(folder / "small")
    execute(warm, curvature=curvature)
    prepared, curvature = made(folder)
    bill = prepared.bill(prepared.backend())
    before, peak, over = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    execute(prepared, curvature=curvature)
    over.set()
    watcher.join()
    print(json.dumps({"added": peak - before, "billed": bill.total - bill.process}))


main()
