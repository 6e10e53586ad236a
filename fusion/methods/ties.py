"""TIES: trim each model's deltas to the largest, elect a sign for each element, average the models that agree with it.

    τ_k = top(δ_k)                            the density·N largest magnitudes; of equals those with the lowest index
    σ   = sign Σ_k w_k·τ_k                    elected, per element; zero elects +
    W   = W_pre + λ·Σ_{k: sign = σ} w_k·τ_k / Σ_{k: sign = σ} w_k

Yadav et al., TIES-Merging, NeurIPS 2023 (arXiv:2306.01708), which has no weights and meets the density over the model.
With weights this is mergekit's `ties` under `normalize`; the `unweighted` election is PEFT's, where all have one vote
and the mean is over their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ..transforms.chain import Chain
from ..transforms.merge import elect
from ..transforms.scale import scale
from ..transforms.trim import trim
from .options import Elected, Scoped, Trimmed


@dataclass(frozen=True, kw_only=True)
class Ties(Scoped, Elected, Trimmed):
    """Keep the largest deltas of each model, elect signs, and average the models that agree."""

    name: ClassVar[str] = "ties"
    title: ClassVar[str] = "TIES"
    source: ClassVar[str] = "arXiv:2306.01708"

    @cached_property
    def chain(self) -> Chain:
        """Trim, elect, scale."""
        return trim(self.density) | elect(self.weights, self.election, normalize=self.normalize) | scale(self.scale)
