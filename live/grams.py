"""Σ x·xᵀ of a model's parameters, moved back to the tensors in the checkpoint's files.

Each row of a parameter meets one matrix, each of its columns one input of it. The numbers of matrices and of inputs are
moved back as sums are, through whatever the conversion does; they then say which matrices a tensor's rows meet, and in
which order its columns stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import gcd, prod
from typing import Any

import numpy as np

from ..fusion.arithmetic.curvature import Curvature
from ..fusion.arithmetic.row_layout import row_layout
from .conversions import Conversion, Values, collapse, pull_back
from .terms import Terms


def pull_back_grams(
    steps: Sequence[Conversion], sources: Mapping[str, Sequence[str]], terms: Mapping[str, Terms]
) -> dict[str, np.ndarray]:
    """Return Σ x·xᵀ of the tensors that went into a conversion, by name; those whose rows have none are left out.

    Args:
        sources: Pattern to the names of tensors.
        terms: Of the tensors that came out, by key among the last step's outputs.
    """
    matrices = _Matrices()
    values: Values = {
        key: [_numbers(key, shape, terms[key], matrices) if key in terms else ()]
        for key, (shape,) in steps[-1].after.items()
    }
    if not matrices.all:
        return {}
    moved = pull_back(steps, values)
    found = {}
    for pattern, names in sources.items():
        for name, numbers in zip(names, moved.get(pattern, ()), strict=False):
            gram = _gram(collapse(numbers[0]), collapse(numbers[1]), matrices.all) if numbers else None
            if gram is not None:
                found[name] = gram
    return found


class _Matrices:
    """Matrices that differ, numbered from 1: q, k and v of one fused tensor see the same."""

    def __init__(self) -> None:
        self.all: list[np.ndarray] = []
        self._numbers: dict[Any, int] = {}

    def number(self, matrix: np.ndarray) -> int:
        key = (matrix.shape, matrix.diagonal().tobytes())
        known = self._numbers.get(key)
        if known is not None and np.array_equal(self.all[known - 1], matrix):
            return known
        self.all.append(matrix)
        self._numbers[key] = len(self.all)
        return len(self.all)


def _numbers(name: str, shape: tuple[int, ...], terms: Terms, matrices: _Matrices) -> tuple[np.ndarray, ...]:
    """Return the number of each row's matrix and of each column's input, as arrays that broadcast to the parameter."""
    gram = terms.gram
    if gram is None:
        return ()
    layout = row_layout(name, shape, Curvature(terms=terms.sums, num_tokens=0, gram=gram))
    own = [matrices.number(matrix) for matrix in (gram if gram.ndim == 3 else gram[None])]
    rows = np.repeat(np.asarray(own, float), shape[0] // layout.stack if len(own) > 1 else 1)
    inputs = next(k for k in range(len(shape)) if prod(shape[axis] for axis in layout.order[k:]) == layout.width)
    columns = [size if axis in layout.order[inputs:] else 1 for axis, size in enumerate(shape)]
    return rows.reshape(-1, *(1,) * (len(shape) - 1)), np.arange(float(layout.width)).reshape(columns)


def _gram(rows: np.ndarray, columns: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the matrix of a tensor, or its stack of them; None where some rows have none or they do not stack."""
    numbers = rows.reshape(-1).astype(int)
    if rows.size != rows.shape[0] or not numbers.all() or (rows.size > 1 and columns.shape[0] > 1):
        return None
    order = columns.reshape(-1).astype(int)
    as_it_is = np.array_equal(order, np.arange(matrices[numbers[0] - 1].shape[0]))
    block = gcd(*(len(list(run)) for _, run in groupby(numbers)))
    own = [matrices[number - 1] for number in numbers[::block]]
    own = own if as_it_is else [matrix[np.ix_(order, order)] for matrix in own]
    return own[0] if len(own) == 1 else np.stack(own)
