"""How much faster two threads are than one, kernel by kernel, and what of a fuse only one thread or a few can do.

    python benchmarks/threads.py

Each method on one tensor of 33.5 M elements in memory, one thread and two in turns, the least of some: wall time, which
needs two idle cores to mean anything, and CPU seconds, which say what threads cost each other. What a fuse of a
checkpoint does on one thread is told by a profiler: `py-spy record -t -n -f raw -- sculpt dare …`.
"""

from __future__ import annotations

import argparse
import time

import ml_dtypes
import numpy as np

SHAPE = (8192, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    import sculpt
    from sculpt.fusion.arithmetic.curvature import Curvature

    draw = np.random.default_rng(0)
    base = (0.02 * draw.standard_normal(SHAPE, np.float32)).astype(ml_dtypes.bfloat16)
    tuned = (base.astype(np.float32) + 0.001 * draw.standard_normal(SHAPE, np.float32)).astype(ml_dtypes.bfloat16)
    diagonal = Curvature(terms=(draw.random((1, SHAPE[1])),), num_tokens=1)
    methods = {
        "AdaDARE, closed form": (sculpt.AdaDare(), diagonal),
        "AdaDARE, exact": (sculpt.AdaDare(allocation="exact"), diagonal),
        "DARE": (sculpt.Dare(), None),
        "TIES": (sculpt.Ties(density=0.1), None),
        "task arithmetic": (sculpt.TaskArithmetic(scale=0.7), None),
    }
    print("| | wall, 1 thread | 2 threads | efficiency | CPU s, 1 thread | 2 threads | ratio |")
    print("|---" * 7 + "|")
    for name, (method, curvature) in methods.items():
        least: dict[int, tuple[float, float]] = {}
        for turn in range(2 * arguments.runs + 2):
            threads = 1 + turn % 2
            start, started = time.perf_counter(), time.process_time()
            sculpt.apply(method, base, tuned, curvature=curvature, settings=sculpt.Settings(threads=threads))
            found = time.perf_counter() - start, time.process_time() - started
            if turn > 1:  # the first of each loads its kernels
                least[threads] = tuple(map(min, zip(least.get(threads, found), found, strict=True)))
        (wall, cpu), (walls, cpus) = least[1], least[2]
        figures = f"{wall:.3f} | {walls:.3f} | {wall / walls / 2:.2f} | {cpu:.3f} | {cpus:.3f} | {cpu / cpus:.2f}"
        print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
