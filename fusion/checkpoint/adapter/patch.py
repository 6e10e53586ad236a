"""What an adapter makes of one tensor of its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .low_rank import LowRank

ReadFactor = Callable[[str], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Product:
    """How a `LowRank` is made from an adapter's tensors.

    Attributes:
        key: The name that rank and alpha are looked up for: the module's, or the parameter's.
        a, b: Names of the factors in the adapter; `b` alone is a bias.
        scale: s.
        experts: How many products are stacked in them.
        transposed: The base's tensor is (d_in, d_out), or a vocabulary.
        expert, rows: Which part of the product falls on the base's tensor.
    """

    key: str
    a: str | None
    b: str
    scale: float
    experts: int = 1
    transposed: bool = False
    expert: int | None = None
    rows: tuple[int, int] | None = None

    def factors(self, read: ReadFactor) -> LowRank:
        """Return the product, its factors in float32."""
        b = read(self.b).astype(np.float32)
        if self.a is None:
            return LowRank(left=b.reshape(1, -1, 1), right=np.ones((1, 1, 1), np.float32), scale=self.scale)
        a = read(self.a).astype(np.float32)
        # PEFT stacks experts as A (experts·r, d_in) and B (d_out, r·experts): the expert is outer in A and inner in B.
        a = a.reshape(self.experts, len(a) // self.experts, -1)
        b = b.reshape(len(b), -1, self.experts).transpose(2, 0, 1)
        left, right = (a.transpose(0, 2, 1), b.transpose(0, 2, 1)) if self.transposed else (b, a)
        if self.expert is not None:
            left, right = left[self.expert : self.expert + 1], right[self.expert : self.expert + 1]
        if self.rows is not None:
            left = left[:, slice(*self.rows)]
        left = np.ascontiguousarray(left)
        return LowRank(left=left, right=np.ascontiguousarray(right), scale=self.scale)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """What an adapter makes of one tensor.

    Attributes:
        stored: The adapter's tensor that takes the place of the base's, or None.
        product: What is added, or None.
        magnitude: DoRA's magnitudes, or None.
        rows: Trained tokens: the adapter's tensor that takes the place of some rows, those of `stored` if there is one,
            and their numbers; or None.
    """

    stored: str | None = None
    product: Product | None = None
    magnitude: str | None = None
    rows: tuple[str, tuple[int, ...]] | None = None
