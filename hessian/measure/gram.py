"""Σ x·xᵀ of inputs that come in small batches, as they do when one sample is run at a time.

Rows are gathered until there are about as many as columns, so that a product of (rows, width) matrices is what takes
the time and not the writing of a (width, width) result for each few rows. Products are in the inputs' own precision,
float32 at least; their sum is float64. Only the lower half is computed: the other is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...fusion.device import float64_device

MIN_ROWS = 512
STRIP = 256  # rows of the result that are computed at once: up to the diagonal, and to the end of its block


def own_rows(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return a copy of an (n, d) matrix, float32 or float64, whose products count each row by its weight.

    Rows that count for nothing, such as padding, are left out, unless an accelerator would have to be waited for.
    """
    given = rows
    if weights is not None and weights.device.type == "cpu":
        counted = weights.nonzero().squeeze(1)
        rows, weights = rows[counted], weights[counted]
    copy = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=rows is given)
    return copy if weights is None else copy.mul_(weights.to(copy).sqrt().unsqueeze(1))


@dataclass(eq=False)
class LastProduct:
    """The product that was made last: tensors that see the same inputs, as q, k and v do, share it."""

    pieces: tuple[Tensor, ...] = ()
    strips: tuple[Tensor, ...] = ()

    def of(self, pieces: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return Σ x·xᵀ over the rows of all pieces: its lower half, as strips of `STRIP` rows."""
        same = len(pieces) == len(self.pieces) and all(a is b for a, b in zip(pieces, self.pieces, strict=True))
        if not self.strips or not same:
            rows = torch.cat(list(pieces)) if len(pieces) > 1 else pieces[0]
            starts = range(0, rows.shape[1], STRIP)
            self.strips = tuple(rows[:, k : k + STRIP].T @ rows[:, : k + STRIP] for k in starts)
            self.pieces = tuple(pieces)
        return self.strips

    def forget(self) -> None:
        """Let go of it."""
        self.pieces, self.strips = (), ()


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
        if not self._waiting:
            return
        strips = self.last.of(self._waiting)
        if self._total is None:
            device = float64_device(strips[0].device)
            self._total = torch.zeros(self.width, self.width, dtype=torch.float64, device=device)
        for start, strip in zip(range(0, self.width, STRIP), strips, strict=True):
            self._total[start : start + STRIP, : strip.shape[1]].add_(strip.to(self._total.device))
        self._waiting, self._rows = [], 0

    def total(self) -> Tensor:
        """Return the sum, (width, width), float64."""
        self._flush()
        if self._total is None:
            return torch.zeros(self.width, self.width, dtype=torch.float64)
        for start in range(STRIP, self.width, STRIP):
            self._total[:start, start : start + STRIP] = self._total[start : start + STRIP, :start].T
        return self._total

    def start_from(self, total: Tensor) -> None:
        """Take up the sum of an earlier run."""
        self._total = total
