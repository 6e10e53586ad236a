"""What statistics say of each layer: how unequal its inputs are, which are dead, how many tokens reached it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ...fusion.arithmetic.curvature import Curvature
from ...fusion.arithmetic.two_sided import EXPERT
from ...fusion.names import natural_key
from .diagonal import DiagonalHessian

STACK = ".experts."  # what the names of stacked experts have, and those that are stored apart
STARVED = 0.1  # of the tokens of an average expert


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


@dataclass(frozen=True, kw_only=True)
class Expert:
    """An expert, its tokens, and those of an average expert of its layer."""

    name: str
    num_tokens: int
    average: float


def starved_experts(hessian: DiagonalHessian) -> list[Expert]:
    """Return the experts that saw less than a tenth of the tokens of an average one, in natural order."""
    layers: dict[str, dict[str, int]] = defaultdict(dict)
    for name, curvature in hessian.items():
        apart, stack = EXPERT.search(name), name.partition(STACK)
        if apart:
            layers[name[: apart.start()]][name[: apart.end() - 1]] = curvature.num_tokens
        elif stack[1] and curvature.part_tokens:
            named = {f"{stack[0]}{STACK}{k}": count for k, count in enumerate(curvature.part_tokens)}
            layers[stack[0]] |= named
    found = []
    for experts in layers.values():
        average = sum(experts.values()) / len(experts)
        found += [
            Expert(name=name, num_tokens=count, average=average)
            for name, count in experts.items()
            if count < STARVED * average
        ]
    return sorted(found, key=lambda expert: natural_key(expert.name))


def report(hessian: DiagonalHessian) -> list[TensorReport]:
    """Return the figures of every tensor, in natural order; biases, which see only ones, are left out."""
    found = []
    for name in sorted(hessian, key=natural_key):
        curvature = hessian[name]
        if max((term.size for term in curvature.terms), default=0) > 1:
            found.append(_tensor(name, curvature, hessian.provenance.num_tokens))
    return found
