"""How strong an injection may be when the L1 distance to the base has a budget: Theorem 2 of AdaDARE-γ.

    E‖W_fusion − W_pre‖₁ = γ·Σ|δ_i|        hence        γ <= η/Σ|δ_i|

It holds for every keep probability, clipped or not, as `E[M_i/q_i] = 1`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from ..errors import MethodError
from .sums import block_sums, exact_total
from .tile import Tile


def l1_sums(tile: Tile) -> Any:
    """Return block sums of |δ| and of |base|, shape (2, num_blocks)."""
    xp = array_namespace(tile.base)
    return xp.stack([block_sums(xp.abs(tile.deltas[0])), block_sums(xp.abs(tile.base))])


@dataclass(frozen=True, kw_only=True)
class L1Norms:
    """Of a whole tensor: Σ|δ| and ‖W_pre‖₁."""

    delta: float
    base: float

    @classmethod
    def of(cls, tiles: Sequence[np.ndarray]) -> L1Norms:
        """Combine what `l1_sums` returned of each tile."""
        delta, base = exact_total(tiles)
        return cls(delta=float(delta), base=float(base))

    def __add__(self, other: L1Norms) -> L1Norms:
        return L1Norms(delta=self.delta + other.delta, base=self.base + other.base)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit on the expected L1 distance between the fused tensor and the base.

    Attributes:
        eta: η, absolute, or None.
        eta_relative: η as a fraction of ‖W_pre‖₁, or None.
    """

    eta: float | None = None
    eta_relative: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("eta", self.eta), ("eta_relative", self.eta_relative)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise MethodError(f"`{name}` must be at least 0, got {value:g}", options=[name])
        if self.eta is not None and self.eta_relative is not None:
            raise MethodError("`eta` and `eta_relative` exclude each other", options=["eta", "eta_relative"])

    @property
    def is_set(self) -> bool:
        """Whether there is a limit at all."""
        return self.eta is not None or self.eta_relative is not None

    @property
    def is_nothing(self) -> bool:
        """Whether the limit allows no change."""
        return self.eta == 0 or self.eta_relative == 0

    def limit(self, norms: L1Norms) -> float:
        """Return η; infinite without a limit."""
        if self.eta is not None:
            return self.eta
        return float("inf") if self.eta_relative is None else self.eta_relative * norms.base

    def largest_gamma(self, norms: L1Norms) -> float:
        """Return the largest γ whose expected distance is within η; infinite where no delta is there to be injected."""
        limit = self.limit(norms)
        return limit / norms.delta if norms.delta and np.isfinite(limit) else float("inf")

    def cut(self, gamma: float, norms: L1Norms) -> float:
        """Return γ, or where that is smaller its bound, rounded towards 0 to float32 as kernels take it."""
        largest = self.largest_gamma(norms)
        if gamma <= largest:
            return gamma
        rounded = np.float32(largest)
        return float(rounded if float(rounded) <= largest else np.nextafter(rounded, np.float32(0)))
