"""A γ for each block, by the expected losses in closed form.

The expected layer-wise loss of AdaDARE-γ is quadratic in γ. With `A = Σ H·δ²/q` and `B = Σ H·δ²` of a block,

    L(γ) = γ²·A − 2γ·B + B

whose minimum is `γ = B/A`: no more than 1, and less the more is dropped, as rescaling adds variance. Minimising it
alone would ignore why one injects at all, so the total injection is held: the expected L1 distance `Σ_b γ_b·l_b`, with
`l = Σ|δ|` (Theorem 2), shall be that of one strength γ̄ for all blocks. With a multiplier μ,

    γ_b = (B_b + μ·l_b)/A_b,       μ = (γ̄·Σl − Σ l·B/A)/Σ(l²/A)

as long as every γ_b lies in [0, 1]; otherwise those outside are set to the border and μ is found for the others. By
construction the expected loss is at most that of one γ̄, at the same expected distance. Whether the *scores* are
better is another question, which a sweep answers: the loss of one layer does not know what the next makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..fusion.errors import MethodError
from ..fusion.methods import AdaDare
from ..fusion.names import block_of
from ..fusion.record.records import TensorRecord

BISECTIONS = 200


@dataclass(frozen=True, kw_only=True)
class BlockLoss:
    """Of one block: `A = Σ H·δ²/q`, `B = Σ H·δ²`, and `l = Σ|δ|`."""

    over_q: float
    squares: float
    delta_l1: float

    def at(self, gamma: float) -> float:
        """Return the expected loss."""
        return gamma**2 * self.over_q - 2 * gamma * self.squares + self.squares


def block_losses(
    method: AdaDare, at_half: Mapping[str, TensorRecord], at_one: Mapping[str, TensorRecord]
) -> dict[str, BlockLoss]:
    """Return the losses of each block, from the records of fuses with γ = 0.5 and γ = 1.

    `L(0.5) = A/4` and `L(1) = A − B`, so the figures that every fuse records are enough.

    Raises:
        MethodError: Nothing is dropped, or everything; or losses are not known by tensor.
    """
    if not 0 < method.sparsity < 1 or method.scope != "tensor":
        raise MethodError("a γ for each block needs a sparsity between 0 and 1, and `scope` tensor")
    figure = f"expected_loss_{method.allocation.replace('-', '_')}"
    sums: dict[str, list[float]] = {}
    for name, record in at_half.items():
        if figure in record.figures:
            over_q = 4 * record.figures[figure]
            squares = over_q - at_one[name].figures[figure]
            block = sums.setdefault(block_of(name), [0.0, 0.0, 0.0])
            for place, value in enumerate((over_q, squares, record.delta_l1 or 0.0)):
                block[place] += value
    return {
        block: BlockLoss(over_q=values[0], squares=values[1], delta_l1=values[2])
        for block, values in sums.items()
        if values[0] > 0
    }


def block_strengths(losses: Mapping[str, BlockLoss], strength: float) -> dict[str, float]:
    """Return the γ of each block with the least expected loss at the expected L1 distance of one strength for all.

    Args:
        strength: γ̄, in [0, 1].
    """
    if not 0 <= strength <= 1:
        raise MethodError(f"a γ for each block needs a strength between 0 and 1, got {strength:g}")
    wanted = strength * sum(loss.delta_l1 for loss in losses.values())

    def strengths(multiplier: float) -> dict[str, float]:
        return {
            block: min(1.0, max(0.0, (loss.squares + multiplier * loss.delta_l1) / loss.over_q))
            for block, loss in losses.items()
        }

    def distance(multiplier: float) -> float:
        return sum(gamma * losses[block].delta_l1 for block, gamma in strengths(multiplier).items())

    # Every γ is 0 at the lower end and 1 at the upper; the distance grows with μ in between.
    low = min((-loss.squares / loss.delta_l1 for loss in losses.values()), default=0.0)
    high = max(((loss.over_q - loss.squares) / loss.delta_l1 for loss in losses.values()), default=0.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if distance(middle) < wanted else (low, middle)
    return strengths(high)
