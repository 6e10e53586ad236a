"""A target's curvature from its delta, where nobody has samples of the task.

Steps of SGD add up to δ = Σ e·xᵀ over inputs x and output errors e, so that δᵀδ is the inputs' moment weighted by how
wrong the model was. Adam divides each step by the root of its mean square, about σ_i·√A_jj, which loses the columns'
scale: δᵀδ ∝ D_A^−½·A·D_A^−½. Fine-tuning hardly changes how large activations are, so G has the scale that is missing:

    C = δᵀδ        A = D_G^½·D_C^−½·C·D_C^−½·D_G^½,  then scaled to G's trace        (D_X: the diagonal of X)

δᵀδ as it is stands in for the inputs in WUDI (arXiv:2503.08099) and ACTMat, without a base term.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

FEW = 8  # a delta is of low rank if an eighth of its directions …
LOW_RANK_ENERGY = 0.99  # … hold this much of it


def delta_moment(deltas: Iterable[Any]) -> Any:
    """Return δᵀδ, a float64 torch tensor (width, width), of runs of rows, float torch tensors (rows, width)."""
    total = None
    for delta in deltas:
        own = delta.T @ delta
        total = own.double() if total is None else total.add_(own)
    assert total is not None  # a tensor without elements has no matrices
    return total


def inputs_of(moment: Any, general: Any) -> Any:
    """Return A from δᵀδ and G, float64 torch tensors (width, width); the first is changed, the second is not.

    Zeros where δ or G is zero throughout.
    """
    scale, diagonal = general.diagonal(), moment.diagonal().clone()
    root = (scale / diagonal.masked_fill(diagonal == 0, 1)).sqrt_().masked_fill_(diagonal == 0, 0)
    moment.mul_(root).mul_(root[:, None])
    trace = float(moment.trace())
    return moment.mul_(float(scale.sum()) / trace) if trace > 0 else moment.zero_()


def is_low_rank(delta: np.ndarray, rounding: float) -> bool:
    """Return whether few directions hold nearly all of a delta beyond its rounding, as of an adapter that was merged.

    Args:
        delta: (rows, width).
        rounding: Σ of the squares that storing the tuned elements is expected to have added.
    """
    moments = delta.astype(np.float64)
    moments = moments @ moments.T if delta.shape[0] < delta.shape[1] else moments.T @ moments
    energies = np.linalg.eigvalsh(moments)
    directions = len(energies) // FEW
    total = float(energies.sum()) - rounding
    return bool(directions) and total > 0 and float(energies[-directions:].sum()) >= LOW_RANK_ENERGY * total
