"""What is compared on large models: methods with a strength, and the statistics that each goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import sculpt
from sculpt.benchmarks.forgetting.rivals import Aim, Cgm, DgHard, NullSpace
from sculpt.fusion.methods import Method

GAMMAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
LAMBDAS = (0.1, 0.3, 1.0, 3.0, 10.0)
SMALL = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
ALPHAS = (0.001, 0.01, 0.1, 1.0, 10.0)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# No statistics, those of both sides, of the base alone, of the answers' tokens, or what `rivals/measure.py` measures.
Wants = Literal["nothing", "both", "general", "answers", "magnitudes", "fisher", "gradients"]
PLAIN = sculpt.AdaDare(gamma=1.0, sparsity=0.0)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to repair the fine-tune.

    Attributes:
        method: Of a strength.
        grid: Strengths, of which the suite that chooses tells the best; that nearest to `start` is tried first.
        protection: Of a strength, where the base is protected.
    """

    name: str
    wants: Wants = "nothing"
    method: Callable[[float], Method] = lambda _: PLAIN
    grid: tuple[float, ...]
    start: float
    protection: Callable[[float], sculpt.Protection] | None = None


def weighted(weight: float) -> sculpt.Protection:
    return sculpt.Protection(weight=weight)


def identity(weight: float) -> sculpt.Protection:
    return sculpt.Protection(weight=weight, target="identity")


ARMS = (
    Arm(name="interpolation", method=lambda s: sculpt.TaskArithmetic(scale=s), grid=GAMMAS, start=0.6),
    Arm(name="dare 0.9", method=lambda s: sculpt.Dare(sparsity=0.9, scale=s), grid=GAMMAS, start=0.6),
    Arm(name="ties 0.1", method=lambda s: sculpt.Ties(density=0.1, scale=s), grid=SCALES, start=1.4),
    Arm(
        name="adadare exact 0.9",
        wants="both",
        method=lambda s: sculpt.AdaDare(sparsity=0.9, gamma=s, allocation="exact"),
        grid=GAMMAS,
        start=0.6,
    ),
    Arm(name="lines", method=lambda s: sculpt.Lines(alpha=s, beta=1 - s), grid=SHARES, start=0.3),
    Arm(name="dg-hard", method=lambda s: DgHard(threshold=s), grid=(0.2, 0.35, 0.5, 0.7, 1.0, 1.4), start=0.7),
    Arm(name="aim", wants="magnitudes", method=lambda s: Aim(omega=s), grid=SHARES[:6], start=0.4),
    Arm(name="cgm soft", wants="fisher", method=lambda s: Cgm(alpha=s), grid=ALPHAS, start=1.0),
    Arm(name="cgm hard", wants="fisher", method=lambda s: Cgm(form="hard", reverted=s), grid=SHARES, start=0.5),
    Arm(
        name="null space, hard",
        wants="general",
        method=lambda s: NullSpace(strength=s),
        grid=(0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
        start=0.9,
    ),
    Arm(name="null space, soft", wants="general", protection=identity, grid=SMALL, start=0.03),
    Arm(name="two-sided", wants="both", protection=weighted, grid=LAMBDAS, start=1.0),
    Arm(name="two-sided, no samples", wants="general", protection=weighted, grid=SMALL, start=0.1),
    Arm(name="two-sided by answers", wants="answers", protection=weighted, grid=(*SMALL[2:], 3.0), start=0.1),
    Arm(name="two-sided by gradients", wants="gradients", protection=weighted, grid=(*SMALL[2:], 3.0), start=0.1),
)
