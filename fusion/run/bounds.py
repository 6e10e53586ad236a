"""How far γ may go: Σ|δ| and ‖W_pre‖₁ of every tensor of a pair, in one pass over the files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..arithmetic.budget import Budget, L1Norms, l1_sums
from ..arithmetic.passes import Pass
from ..arithmetic.random import Key
from ..arithmetic.tile import RawTile
from ..checkpoint import open_checkpoint
from ..errors import NonFiniteError
from ..methods import AdaDare
from ..plan.plan import Plan, Policies, Request, Selection, Step, make_plan
from .backend import Backend, pick_backend


@dataclass(frozen=True, kw_only=True)
class TensorBound:
    """One tensor that a fuse would change: its name in the output, and its norms."""

    name: str
    num_elements: int
    norms: L1Norms

    def largest_gamma(self, budget: Budget) -> float:
        """Return the largest γ within the budget of this tensor."""
        return budget.largest_gamma(self.norms)


def measure_bounds(
    base: Path | str,
    tuned: Path | str,
    *,
    selection: Selection | None = None,
    policies: Policies | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _name: None,
) -> tuple[TensorBound, ...]:
    """Return Σ|δ| and ‖W_pre‖₁ of each tensor that a fuse would change, in the order of the base's files.

    Raises:
        SculptError: The pair cannot be fused; or a tensor holds NaN or infinity.
    """
    opened = open_checkpoint(base)
    method = AdaDare()
    request = Request(selection=selection or Selection(), policies=policies or Policies())
    plan = make_plan([opened, open_checkpoint(tuned, opened)], lambda _: method, request)
    return bounds_of(plan, pick_backend(device, threads=threads), progress=progress)


def bounds_of(
    plan: Plan, backend: Backend, *, progress: Callable[[int, int, str], None] = lambda _done, _total, _name: None
) -> tuple[TensorBound, ...]:
    """Return the norms of each tensor that a plan fuses with the first tuned model."""
    steps = [step for step in plan.steps if step.action == "fuse"]
    wanted = Pass(function=l1_sums, combine=L1Norms.of)
    total, done, found = sum(step.bytes_read for step in steps), 0, []

    def rows(job: tuple[Step, int, int]) -> np.ndarray:
        return backend.run_pass(_tile(plan, *job), wanted)

    with ThreadPoolExecutor(backend.threads) as pool:
        jobs = ((step, start, stop) for step in steps for start, stop in _cuts(step, backend.tile_elements))
        results = _ahead(pool, rows, jobs, 4 * backend.threads)
        for step in steps:
            tiles = list(islice(results, len(_cuts(step, backend.tile_elements))))
            norms = wanted.combine(tiles) if tiles else L1Norms(delta=0.0, base=0.0)
            _refuse_nonfinite(plan, step, norms)
            found.append(TensorBound(name=step.name, num_elements=step.num_fused, norms=norms))
            for checkpoint, info in zip((plan.base, plan.tuned[0]), (step.base, step.tuned[0]), strict=True):
                if info is not None:
                    checkpoint.release(info.name)
            done += step.bytes_read
            progress(done, total, step.name)
    return tuple(found)


def _cuts(step: Step, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, step.num_fused)) for start in range(0, step.num_fused, size)]


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Any], np.ndarray], jobs: Iterable[Any], depth: int
) -> Iterator[np.ndarray]:
    """Yield the results of the jobs in their order, with no more than `depth` of them under way."""
    jobs = iter(jobs)
    waiting = [pool.submit(function, job) for job in islice(jobs, depth)]
    while waiting:
        result = waiting.pop(0).result()
        waiting += [pool.submit(function, job) for job in islice(jobs, 1)]
        yield result


def _tile(plan: Plan, step: Step, start: int, stop: int) -> RawTile:
    assert step.base is not None
    assert step.tuned[0] is not None
    return RawTile(
        start=start,
        base=plan.base.raw(step.base.name, start, stop),
        tuned=(plan.tuned[0].raw(step.tuned[0].name, start, stop),),
        keys=(Key(low=0, high=0),),  # nothing is drawn
        root=None,
    )


def _refuse_nonfinite(plan: Plan, step: Step, norms: L1Norms) -> None:
    if np.isfinite([norms.delta, norms.base]).all():
        return
    for checkpoint, info in zip((plan.base, plan.tuned[0]), (step.base, step.tuned[0]), strict=True):
        assert info is not None
        count = int((~np.isfinite(checkpoint.raw(info.name).astype(np.float32))).sum())
        if count:
            raise NonFiniteError(info.name, f"`{checkpoint.path}`", count)
