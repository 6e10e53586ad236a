"""Σ x·xᵀ of inputs that come in small batches, as they do when one sample is run at a time.

Rows are gathered until there are about as many as columns, so that a product of (rows, width) matrices is what takes
the time and not the writing of a (width, width) result for each few rows. Products are in the inputs' own precision,
float32 at least; their sum is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .moments import wide

MIN_ROWS = 512


def own_rows(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return a copy of an (n, d) matrix, float32 or float64, whose products count each row by its weight."""
    copy = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
    return copy if weights is None else copy.mul_(weights.to(copy).sqrt().unsqueeze(1))


@dataclass(eq=False)
class LastProduct:
    """The product that was made last: tensors that see the same inputs, as q, k and v do, share it."""

    pieces: tuple[Tensor, ...] = ()
    product: Tensor | None = None

    def of(self, pieces: Sequence[Tensor]) -> Tensor:
        """Return Σ x·xᵀ over the rows of all pieces, float64."""
        same = len(pieces) == len(self.pieces) and all(a is b for a, b in zip(pieces, self.pieces, strict=True))
        if self.product is None or not same:
            rows = torch.cat(list(pieces)) if len(pieces) > 1 else pieces[0]
            self.pieces, self.product = tuple(pieces), wide(rows.T @ rows)
        return self.product

    def forget(self) -> None:
        """Let go of it."""
        self.pieces, self.product = (), None


@dataclass(eq=False)
class GramSum:
    """Σ x·xᵀ of one matrix of inputs.

    Attributes:
        width: Number of inputs.
        last: Shared with others that may see the same.
    """

    width: int
    last: LastProduct
    _total: Tensor | None = None
    _waiting: list[Tensor] = field(default_factory=list)
    _rows: int = 0

    def add(self, rows: Tensor) -> None:
        """Add the rows of an (n, width) matrix, which is not changed afterwards."""
        self._waiting.append(rows)
        self._rows += len(rows)
        if self._rows >= max(MIN_ROWS, self.width):
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            product = self.last.of(self._waiting)
            self._total = product.clone() if self._total is None else self._total.add_(product)
            self._waiting, self._rows = [], 0

    def total(self) -> Tensor:
        """Return the sum, (width, width), float64."""
        self._flush()
        return torch.zeros(self.width, self.width, dtype=torch.float64) if self._total is None else self._total

    def start_from(self, total: Tensor) -> None:
        """Take up the sum of an earlier run."""
        self._total = total
