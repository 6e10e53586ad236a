"""ACE-Merging: RegMean with the centred deltas' covariances in place of the inputs', and a spectral refinement.

    W = W_pre + (Σ_k δ_k·(A_k + ε·I))·(Σ_k (A_k + ε·I) + C)⁻¹,      A_k = δ_kᵀδ_k,  δ without each column's mean

Xu et al., ACE-Merging, CVPR 2026 (arXiv:2603.02945), to the letter of the released `ace_merging`: C is the mean row of
Σ_k A_k, added to every row. Where the deltas' energies differ much (the variance of their logarithms above 0.3 of the
squared mean) A and ε are divided by the trace, C by the mean trace, and the mean of the largest 30 % of the singular
values is added in their directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sculpt.fusion.methods.by_matrix import ByMatrix

TINY = 1e-12
UNEQUAL = 0.3


@dataclass(frozen=True, kw_only=True)
class Ace(ByMatrix):
    """Average the deltas by their own covariances.

    Attributes:
        epsilon: ε.
        share: Of the singular values that are refined.
    """

    epsilon: float = 1e-2
    share: float = 0.3

    name: ClassVar[str] = "ace"
    title: ClassVar[str] = "ACE-Merging"
    source: ClassVar[str] = "arXiv:2603.02945"
    min_models: ClassVar[int] = 1
    bytes_per_element: ClassVar[int] = 64
    bytes_per_input_pair: ClassVar[int] = 24
    bytes_per_model_pair: ClassVar[int] = 8

    def merged(self, name: str, deltas: list[Any]) -> Any:  # noqa: ARG002
        """Return the merged delta."""
        import torch

        energies = torch.stack([delta.square().sum() for delta in deltas])
        logs = (energies + TINY).log()
        unequal = len(deltas) > 1 and bool(logs.var() / (logs.mean().square() + TINY) > UNEQUAL)
        identity = torch.eye(deltas[0].shape[1]).to(deltas[0])
        covariances, weighted, total = [], torch.zeros_like(deltas[0]), torch.zeros_like(identity)
        for delta in deltas:
            centred = delta - delta.mean(0, keepdim=True)
            covariance = centred.T @ centred
            size = covariance.trace() + TINY if unequal else 1.0
            covariances.append(covariance / size)
            ridged = covariances[-1] + self.epsilon / size * identity
            weighted += centred @ ridged
            total += ridged
        common = sum(covariances).mean(0, keepdim=True)  # pyright: ignore[reportAttributeAccessIssue]
        if unequal:
            common = common / (energies.mean() + TINY)
        merged = weighted @ torch.linalg.inv(total + common)
        if not unequal:
            return merged
        mean = total / len(deltas)
        refined = merged + sum(delta @ (own - mean) for delta, own in zip(deltas, covariances, strict=True))
        u, values, vh = torch.linalg.svd(refined, full_matrices=False)
        count = int(self.share * len(values))
        return merged + values[:count].mean() * (u[:, :count] @ vh[:count])
