"""What calibration measured of one tensor, in the shape in which methods use it: a diagonal, or the full matrix too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """The diagonal of `H = 2·X·Xᵀ + I` of one tensor, as raw sums of squares.

    `H_i = 2·Σ_k terms[k]_i + 1`, each term broadcast to the tensor's shape. A linear weight (d_out, d_in) has one
    term of shape (1, d_in); an embedding (V, d) one of shape (V, 1); a tied embedding, which is used both ways,
    has both. No terms is `H = I`.

    Attributes:
        terms: float64 arrays with as many dimensions as the tensor, each dimension either its own or 1.
        num_tokens: Rows of X that were summed (tokens, positions or patches; for an expert, those routed to it).
        gram: Raw Σ x·xᵀ where it was asked for, (d_in, d_in) or for stacked experts (E, d_in, d_in), inputs in the
            order of the tensor's own elements along its input dimensions; else None.
        is_measured: False of a model that no samples were run through; its delta tells what the task needs.
    """

    terms: tuple[np.ndarray, ...]
    num_tokens: int
    gram: np.ndarray | None = None
    is_measured: bool = True


UNMEASURED = Curvature(terms=(), num_tokens=0, is_measured=False)


Curvatures = tuple[Curvature | None, ...]  # of one tensor in each model, the base first
