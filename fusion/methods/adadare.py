"""AdaDARE-γ: each delta has its own optimal probability of being dropped.

    s_i = sqrt(H_ii)·|δ_i|
    q_i = min(1, c·s_i)                       keep probability, p_i = 1 − q_i
    W   = W_pre + γ·M_i·δ_i/q_i,              M_i ~ Bernoulli(q_i)

"AdaDARE-γ: Balancing stability and plasticity in multi-modal LLMs through efficient adaptation", CVPR 2025, eq. 8–13.
The paper's closed form (eq. 12) is `c = N(1 − p)/Σs`. It solves Theorem 1 only while no q is cut at 1: the surplus of
those that are is lost, and more is dropped than was asked for. The exact solution is water-filling: c such that
`Σ q = N(1 − p)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from array_api_compat import array_namespace

from ..arithmetic.budget import Budget, L1Norms, l1_sums
from ..arithmetic.passes import Fused, Map, Pass, Reduction
from ..arithmetic.sums import block_sums, exact_total, wide
from ..arithmetic.tile import Tile
from ..errors import MethodError
from ..transforms.scale import add_scaled
from ..transforms.trim import saliencies
from .checks import at_least_zero, fraction, one_of
from .method import Method, Scope

Allocation = Literal["closed-form", "exact"]
FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_WATER_FILLING_PASSES = 100


def scores(tile: Tile) -> Any:
    """Return `s = sqrt(H)·|δ|`, shape (n,), in the tile's dtype."""
    return saliencies(tile)[0]


def score_sums(tile: Tile) -> Any:
    """Return block sums of s, of s² and of the number of non-zero s, and block maxima of s; shape (4, num_blocks)."""
    xp = array_namespace(tile.base)
    s = scores(tile)
    exact = wide(s)
    padding = xp.zeros(-s.shape[0] % 4096, dtype=xp.float64, device=exact.device)
    maxima = xp.max(xp.reshape(xp.concat([exact, padding]), (-1, 4096)), axis=1)
    return xp.stack([block_sums(exact), block_sums(exact * exact), block_sums(s > 0), maxima])


def clipped_sums(tile: Tile, c: float) -> Any:
    """Return block sums over `c·s >= 1`: their number, their s and their s²; shape (3, num_blocks)."""
    xp = array_namespace(tile.base)
    s = scores(tile)
    clipped = wide(c * s >= 1)
    cut = clipped * wide(s)
    return xp.stack([block_sums(clipped), block_sums(cut), block_sums(cut * cut)])


def drop_and_rescale(tile: Tile, c: float, gamma: float) -> Fused:
    """Return `base + γ·δ/q` where an element is kept with probability `q = min(1, c·s)`, else the base's bits.

    An element that is kept for certain (q = 1) at γ = 1 takes the tuned model's bits. δ = 0 gives q = 0: it is
    dropped and never divided.
    """
    xp = array_namespace(tile.base)
    delta = tile.deltas[0]
    keep = c * scores(tile)
    clipped = keep >= 1
    keep = xp.where(clipped, xp.ones_like(keep), keep)
    kept = tile.draw(keep) & (delta != 0)
    values = tile.base + gamma * (delta / xp.where(kept, keep, xp.ones_like(keep)))
    if gamma == 1:
        values = xp.where(clipped, tile.tuned[0], values)
    return Fused(values=xp.where(kept, values, tile.base), kept=kept, clipped=clipped)


@dataclass(frozen=True, kw_only=True)
class ScoreTotals:
    """Of a whole tensor: Σs, Σs², the number of non-zero s, and the largest s."""

    sum: float
    squares: float
    nonzero: int
    largest: float

    @classmethod
    def of(cls, tiles: Sequence[np.ndarray]) -> ScoreTotals:
        """Combine what `score_sums` returned of each tile."""
        total = exact_total([tile[:3] for tile in tiles])
        largest = max((float(tile[3].max()) for tile in tiles if tile.size), default=0.0)
        return cls(sum=float(total[0]), squares=float(total[1]), nonzero=int(total[2]), largest=largest)


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """Of the elements with `c·s >= 1`: their number, Σs and Σs²."""

    count: float = 0.0
    sum: float = 0.0
    squares: float = 0.0


def expected_loss(c: float, gamma: float, totals: ScoreTotals, clipped: Clipped) -> float:
    """Return `Σ H·δ²·(γ²/q − 2γ + 1)` over the non-zero deltas for `q = min(1, c·s)`."""
    if c == 0:
        return totals.squares
    over_q = (totals.sum - clipped.sum) / c + clipped.squares
    return gamma * gamma * over_q + (1 - 2 * gamma) * totals.squares


def expected_keep(c: float, totals: ScoreTotals, clipped: Clipped) -> float:
    """Return `Σ min(1, c·s)`, the expected number of kept deltas."""
    return clipped.count + c * (totals.sum - clipped.sum)


@dataclass(frozen=True, kw_only=True)
class AdaDare(Method):
    """Drop each delta with its own optimal probability, rescale the rest, and add it with strength γ.

    Attributes:
        gamma: γ, the strength of injection. The paper: 0.5 for full fine-tuning, 0.7 for LoRA.
        sparsity: p, the fraction of deltas to drop, in [0, 1]. At 0 nothing is dropped.
        allocation: `closed-form`, the paper's eq. 12, which drops more than asked for if probabilities are cut at 1; or
            `exact`, which drops as much as asked for.
        scope: What has this sparsity as a whole: each `tensor` (the paper's layer), each `block`, or the `model`.
        eta: η, a limit for the expected L1 distance to the base, for each `scope`: γ is at most η/Σ|δ| (Theorem 2).
        eta_relative: The same limit as a fraction of the L1 norm of the base.
    """

    gamma: float = 0.5
    sparsity: float = 0.9
    allocation: Allocation = "closed-form"
    scope: Scope = "tensor"  # pyright: ignore[reportIncompatibleVariableOverride] (an option here)
    eta: float | None = None
    eta_relative: float | None = None

    name: ClassVar[str] = "adadare"
    title: ClassVar[str] = "AdaDARE-γ"
    source: ClassVar[str] = "CVPR 2025, eq. 8–13"
    uses_curvature: ClassVar[bool] = True
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least_zero("gamma", self.gamma)
        fraction("sparsity", self.sparsity)
        one_of("allocation", self.allocation, get_args(Allocation))
        one_of("scope", self.scope, get_args(Scope))
        Budget(eta=self.eta, eta_relative=self.eta_relative)  # checks its own ranges

    @property
    def budget(self) -> Budget:
        """The limit on the L1 distance to the base."""
        return Budget(eta=self.eta, eta_relative=self.eta_relative)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base at γ = 0 or p = 1; the tuned model at p = 0 and γ = 1, unless there is a budget."""
        if self.gamma == 0 or self.sparsity == 1 or self.budget.is_nothing:
            return "base"
        return "tuned" if self.sparsity == 0 and self.gamma == 1 and not self.budget.is_set else None

    def reduce(self, num_elements: int) -> Reduction:
        """Sum the scores; where some would be clipped, also find the water level c."""
        if self.identity == "base":
            return Map(function=add_scaled, arguments=(0.0,))
        gamma, figures = yield from self._within_budget()
        if self.sparsity == 0 or gamma == 0:
            return Map(function=add_scaled, arguments=(gamma,), figures=figures)
        totals: ScoreTotals = yield Pass(function=score_sums, combine=ScoreTotals.of)
        if totals.sum == 0 or not np.isfinite(totals.squares):  # nothing to keep, or NaN, which the caller reports
            return Map(function=add_scaled, arguments=(0.0,))
        budget = num_elements * (1 - self.sparsity)
        closed_c = _as_float32(budget / totals.sum)
        closed = yield from _clipped_at(closed_c, totals)
        exact_c, exact = yield from _water_fill(closed_c, closed, budget, totals)
        c, clipped = (closed_c, closed) if self.allocation == "closed-form" else (exact_c, exact)
        figures |= {
            "score_sum": totals.sum,
            "expected_keep": expected_keep(c, totals, clipped) / num_elements,
            "expected_loss_closed_form": expected_loss(closed_c, gamma, totals, closed),
            "expected_loss_exact": expected_loss(exact_c, gamma, totals, exact),
        }
        return Map(function=drop_and_rescale, arguments=(c, gamma), figures=figures)

    def _within_budget(self):
        """Return γ, cut where its expected distance would exceed the budget; only then are the elements looked at."""
        if not self.budget.is_set:
            return self.gamma, {}
        norms: L1Norms = yield Pass(function=l1_sums, combine=L1Norms.of)
        gamma = self.budget.cut(self.gamma, norms)
        if not norms.delta or not np.isfinite(norms.delta):  # nothing to inject, or NaN, which the caller reports
            return gamma, {}
        return gamma, {
            "eta": self.budget.limit(norms),
            "gamma_bound": self.budget.largest_gamma(norms),
            "gamma": gamma,
            "expected_l1": gamma * norms.delta,
        }


def _as_float32(c: float) -> float:
    if c > FLOAT32_MAX:
        raise MethodError("the deltas are too small for float32 arithmetic")
    return float(np.float32(c))


def _clipped_at(c: float, totals: ScoreTotals):
    """Return the sums over what is clipped at c; without a look at the elements where nothing can be."""
    if np.float32(c) * np.float32(totals.largest) < 1:
        return Clipped()
    count, score, squares = yield Pass(function=clipped_sums, arguments=(c,))
    return Clipped(count=float(count), sum=float(score), squares=float(squares))


def _water_fill(c: float, clipped: Clipped, budget: float, totals: ScoreTotals):
    """Return the c at which `Σ min(1, c·s) = budget`, and the sums over what is clipped there.

    From the closed form upwards, each step spreads the budget that clipped elements leave over the others (Newton's
    method on a concave, piecewise linear function), until no further element is clipped.
    """
    if totals.nonzero <= budget:
        return FLOAT32_MAX, Clipped(count=totals.nonzero, sum=totals.sum, squares=totals.squares)
    for _ in range(MAX_WATER_FILLING_PASSES):
        rest = totals.sum - clipped.sum
        if clipped.count == 0 or rest <= 0:
            break
        raised = float(np.float32((budget - clipped.count) / rest))
        if raised <= c:
            break
        before, c = clipped.count, raised
        clipped = yield from _clipped_at(c, totals)
        if clipped.count == before:
            break
    return c, clipped
