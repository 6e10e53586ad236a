"""WUDI as released: 300 steps of Adam from the sum of the deltas.

    min_τ Σ_k ‖(τ − δ_k)·δ_kᵀ‖²/‖δ_k‖²

Cheng et al., Whoever Started the Interference Should End It, ICML 2025 (arXiv:2503.08099). `sculpt wudi` goes to the
minimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sculpt.fusion.methods.by_matrix import ByMatrix


@dataclass(frozen=True, kw_only=True)
class WudiAdam(ByMatrix):
    """Take steps of Adam from the sum of the deltas to where none disturbs another.

    Attributes:
        steps: How many.
        learning_rate: Of each.
    """

    steps: int = 300
    learning_rate: float = 1e-5

    name: ClassVar[str] = "wudi-adam"
    title: ClassVar[str] = "WUDI by Adam"
    source: ClassVar[str] = "arXiv:2503.08099"
    bytes_per_element: ClassVar[int] = 64

    def merged(self, name: str, deltas: list[Any]) -> Any:  # noqa: ARG002
        """Return what the last step gives."""
        import torch

        energies = [delta.square().sum() for delta in deltas]
        with torch.enable_grad():
            merged = torch.stack(deltas).sum(0).requires_grad_()
            optimizer = torch.optim.Adam([merged], lr=self.learning_rate)
            for _ in range(self.steps):
                optimizer.zero_grad()
                for delta, energy in zip(deltas, energies, strict=True):  # one at a time: rows × rows each
                    (((merged - delta) @ delta.T).square().sum() / energy).backward()
                optimizer.step()
        return merged.detach()
