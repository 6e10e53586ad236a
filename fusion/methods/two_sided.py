"""Two-sided curvature: `W = W_pre + δ·A·(A + λ·G)⁻¹`.

A is the second moment of the inputs that the task gives a layer, G that of general inputs: a delta is kept where the
task needs it, and given up where the base's own inputs go. RegMean (Jin et al., ICLR 2023, arXiv:2212.09849) is its
case of two models and λ = 1. How the base is protected is a setting of the run, as it may be before any method: this
one adds nothing to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..arithmetic.passes import Map, Reduction
from ..transforms.scale import add_scaled
from .method import Method


@dataclass(frozen=True, kw_only=True)
class TwoSided(Method):
    """Keep each delta where it matters for the task, and undo it where it matters for general text; recommended."""

    name: ClassVar[str] = "two-sided"
    title: ClassVar[str] = "two-sided curvature"
    source: ClassVar[str] = "W_pre + δ·A·(A + λ·G)⁻¹; RegMean, arXiv:2212.09849, is a case of it"
    protects: ClassVar[bool] = True

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The protected deltas are taken whole."""
        return "tuned"

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (nothing need be known of the tensor)
        """Return the map at once."""
        yield from ()
        return Map(function=add_scaled, arguments=(1.0,))


def title_under(method: type[Method], *, protects: bool) -> str:
    """Return what a method is called, where the base is protected before it too."""
    return f"{TwoSided.title}, then {method.title}" if protects and not method.protects else method.title
