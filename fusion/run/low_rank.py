"""Which fine-tunes are of low rank: adapters, and models that one was merged into."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import ml_dtypes
import numpy as np

from ..arithmetic.from_delta import is_low_rank
from ..checkpoint import Source
from ..plan.plan import Plan
from ..plan.step import Step

MATRICES = 8  # that are looked at of a model, spread over it
MOST_ROWS = 1024  # of each
SHARE = 0.9  # of these that are of low rank, where the model is


def low_rank_models(plan: Plan) -> frozenset[int]:
    """Return the places among the tuned models of those whose deltas are of low rank.

    An adapter is. Of a whole model, or one that a patch makes, a few matrices are looked at: merged in bfloat16 an
    adapter has the rounding of every element on top, and single tensors of a full fine-tune may have as few directions.
    """
    matrices = [step for step in plan.steps if step.action == "fuse" and len(step.shape) == 2]
    return frozenset(
        k
        for k, tuned in enumerate(plan.tuned)
        if _is_adapter(tuned, k, matrices) or _is_low_rank(plan.base, tuned, k, matrices)
    )


def _is_adapter(tuned: Source, k: int, matrices: Sequence[Step]) -> bool:
    own = (step.tuned[k] for step in matrices)
    return any(info is not None and tuned.low_rank(info.name) is not None for info in own)


def _is_low_rank(base: Source, tuned: Source, k: int, matrices: Sequence[Step]) -> bool:
    found: list[bool] = []
    stride = max(1, len(matrices) // (2 * MATRICES))
    for step in matrices[::stride]:
        own, other = step.base, step.tuned[k]
        if own is None or other is None or len(found) == MATRICES:
            continue
        shape = (min(MOST_ROWS, own.shape[0]), own.shape[1])
        before, after = (source.read(info.name, 0, prod(shape)) for source, info in ((base, own), (tuned, other)))
        delta = (after.astype(np.float32) - before.astype(np.float32)).reshape(shape)
        if delta.any():
            found.append(is_low_rank(delta, _rounding(after)))
    return bool(found) and sum(found) >= SHARE * len(found)


def _rounding(stored: np.ndarray) -> float:
    """Return the sum of squares that rounding to the dtype is expected to have added: a twelfth of each spacing's."""
    _, exponents = np.frexp(stored.astype(np.float32))
    spacing = np.ldexp(1.0, exponents - 1 - ml_dtypes.finfo(stored.dtype).nmant)
    return float((spacing**2).sum() / 12)
