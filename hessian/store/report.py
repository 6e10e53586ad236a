"""What statistics say of each layer: how unequal its inputs are, which are dead, how many tokens reached it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...fusion.arithmetic.curvature import Curvature
from ...fusion.names import natural_key
from .diagonal import DiagonalHessian


@dataclass(frozen=True, kw_only=True)
class TensorReport:
    """Figures of one tensor's diagonal `H = 2·Σx² + 1`, over its inputs.

    Attributes:
        num_inputs: Entries of the diagonal that can differ.
        median: Of H.
        spread: The 99th percentile of H over its 1st.
        dead: Inputs that were zero throughout: H = 1, so their deltas count as nothing.
        num_tokens: Rows that were summed.
        share: `num_tokens` over the tokens of all samples; for an expert, the share that was routed to it.
    """

    name: str
    num_inputs: int
    median: float
    spread: float
    dead: int
    num_tokens: int
    share: float


def _tensor(name: str, curvature: Curvature, all_tokens: int) -> TensorReport:
    sums = np.zeros((1,)) if not curvature.terms else sum(curvature.terms[1:], curvature.terms[0])
    diagonal = 2 * np.asarray(sums).reshape(-1) + 1
    low, high = np.percentile(diagonal, [1, 99])
    return TensorReport(
        name=name,
        num_inputs=diagonal.size,
        median=float(np.median(diagonal)),
        spread=float(high / low),
        dead=int((diagonal == 1).sum()),
        num_tokens=curvature.num_tokens,
        share=curvature.num_tokens / all_tokens if all_tokens else 0.0,
    )


def report(hessian: DiagonalHessian) -> list[TensorReport]:
    """Return the figures of every tensor, in natural order; biases, which see only ones, are left out."""
    found = []
    for name in sorted(hessian, key=natural_key):
        curvature = hessian[name]
        if max((term.size for term in curvature.terms), default=0) > 1:
            found.append(_tensor(name, curvature, hessian.provenance.num_tokens))
    return found
