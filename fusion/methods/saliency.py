"""Saliency: keep exactly the deltas whose loss would hurt the target task most. The deterministic twin of AdaDARE-γ.

    s_i = sqrt(H_ii)·|δ_i|                       as AdaDARE-γ's
    W_i = W_pre,i + λ·δ_i  for the `density` largest s, else W_pre,i

Nothing is random and nothing rescaled: an expected value is given up for less variance. Of equal scores those with the
lowest index are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from ..arithmetic.passes import Reduction
from ..transforms.chain import Chain
from ..transforms.merge import total
from ..transforms.scale import scale
from ..transforms.trim import saliencies, trim
from .options import Chained, Scoped


@dataclass(frozen=True, kw_only=True)
class Saliency(Scoped, Chained):
    """Keep exactly the deltas with the largest `sqrt(H)·|δ|`, as they are.

    Attributes:
        density: Fraction that is kept, in [0, 1]: exactly `floor(density·N)` deltas.
        scale: λ, the strength of what is kept.
    """

    density: float = 0.1
    scale: float = 1.0

    name: ClassVar[str] = "saliency"
    title: ClassVar[str] = "saliency"
    source: ClassVar[str] = "sculpt"
    uses_curvature: ClassVar[bool] = True

    @cached_property
    def chain(self) -> Chain:
        """Trim by score, scale."""
        return trim(self.density, scores=saliencies) | total(1.0) | scale(self.scale)

    def reduce(self, num_elements: int) -> Reduction:
        """Return the chain's map; the smallest score that is kept is a figure of it."""
        found = yield from self.chain.reduce(num_elements)
        if self.identity == "base" or self.density == 1:
            return found
        [(least, _)] = found.arguments[0].ranges
        return replace(found, figures={"smallest_kept": least.value})
