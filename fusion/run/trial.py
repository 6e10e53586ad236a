"""How long a fuse will take: a method tried on a little that is random, on as many threads and by the same backend."""

from __future__ import annotations

import time
from math import prod, sqrt

import numpy as np

from ..arithmetic.group import Group
from ..errors import SculptError
from .apply import apply
from .prepared import Prepared
from .settings import Settings

TRIED = 1 << 20  # elements; of a matrix 512 by 512
SIDE = 512
SLOW = 60e-9  # seconds an element, of what cannot be tried without statistics
DISK = 1e9  # bytes a second
START = 1.5  # seconds


def seconds_to_fuse(prepared: Prepared) -> float:
    """Return about how many seconds the fuse takes, without what is measured before it."""
    plan, method = prepared.plan, prepared.method
    fused = [step for step in plan.steps if step.action == "fuse"]
    moved = plan.bytes_read + sum(shard.nbytes for shard in prepared.layout.shards)
    if not fused:
        return START + moved / DISK
    whole = method.region(Group(name="weight", shape=(SIDE, SIDE))) == "matrix"
    each = _seconds_each(prepared, (SIDE, SIDE) if whole else (TRIED // SIDE, SIDE))
    if whole:  # as decompositions go: with the smaller side
        work = sum(step.num_fused * max(1.0, _side(step.shape) / SIDE) for step in fused)
    else:
        work = float(sum(step.num_fused for step in fused))
    return START + moved / DISK + work * each


def _side(shape: tuple[int, ...]) -> float:
    return min(shape[-1], prod(shape[:-1])) if len(shape) > 1 else sqrt(prod(shape))


def _seconds_each(prepared: Prepared, shape: tuple[int, int]) -> float:
    random = np.random.default_rng(0)
    base = random.standard_normal(shape, np.float32)
    tuned = [base + np.float32(0.01) * random.standard_normal(shape, np.float32) for _ in prepared.plan.tuned]
    settings, backend = Settings(threads=prepared.settings.threads), prepared.backend()
    try:
        apply(prepared.method, base[:8], [one[:8] for one in tuned], settings=settings, backend=backend)
        start = time.perf_counter()
        apply(prepared.method, base, tuned, settings=settings, backend=backend)
    except SculptError:
        return SLOW
    return (time.perf_counter() - start) / base.size
