"""Two-sided curvature: a delta stays where the target task needs it and spares what the base's own inputs use.

    min_Θ  ‖(Θ − W_sft)·A^½‖² + λ·‖(Θ − W_pre)·G^½‖²     ⇒     Θ = W_pre + δ·A·(A + λ·G)⁻¹

A and G are means of x·xᵀ over the inputs of a layer: A of target samples through the fine-tuned model, G of general
samples through the base. Each gets a ridge, a fraction of its mean diagonal, so that A + λ·G can always be factorised:
an input direction that neither side uses is then mixed by 1/(1 + λ·mean G/mean A), one that only general data use goes
back to the base. λ = 0 gives the fine-tune, λ → ∞ the base, A = G an interpolation at 1/(1 + λ). At λ = 1 it is RegMean
(Jin et al., ICLR 2023, arXiv:2212.09849, its eq. 2) of two models. With diagonals alone it is a γ for each column,
A_jj/(A_jj + λ·G_jj), and for each row of an embedding, by token frequencies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..errors import MethodError
from .curvature import Curvature
from .gram import cholesky
from .group import Group
from .tile import sum_of_squares

EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class Protection:
    """How the base is held where general data go.

    Attributes:
        weight: λ, at least 0: how much an error on general inputs weighs against one of the same size on target inputs.
        curvature: `full`, matrices over all inputs of a layer; `block:N`, over N neighbouring inputs; or `diagonal`.
        ridge: Added to each side's matrices, as a fraction of their mean diagonal.
        scores: Whose inputs the drop probabilities go by: the `target`'s, or `both` with λ.
    """

    weight: float = 1.0
    curvature: str = "full"
    ridge: float = 1e-3
    scores: Literal["target", "both"] = "target"

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise MethodError(f"`weight` must be at least 0, got {self.weight}", options=["Protection.weight"])
        if not 0 <= self.ridge < float("inf"):
            raise MethodError(f"`ridge` must be at least 0, got {self.ridge}", options=["Protection.ridge"])
        if self.scores not in ("target", "both"):
            raise MethodError(
                f"`scores` must be one of target, both, got `{self.scores}`", options=["Protection.scores"]
            )
        if self.curvature not in ("full", "diagonal") and not re.fullmatch(r"block:[1-9]\d*", self.curvature):
            raise MethodError(
                f"`curvature` must be full, diagonal or block:N such as block:512, got `{self.curvature}`",
                options=["Protection.curvature"],
            )

    @property
    def needs_gram(self) -> bool:
        """Whether Σ x·xᵀ is used, not its diagonal alone."""
        return self.curvature != "diagonal"

    @cached_property
    def block_size(self) -> int | None:
        """Number of neighbouring inputs that share a matrix; None for all."""
        return int(self.curvature.partition(":")[2]) if ":" in self.curvature else None


def counted_together(curvatures: Mapping[str, Curvature]) -> dict[str, Curvature]:
    """Return the statistics of a block with experts that are stored apart counted by the tokens of all of them.

    As stacked ones are: what an expert sees, and how often, then weighs alike, and so does its ridge.
    """
    groups: dict[str, list[Curvature]] = {}
    for name, curvature in curvatures.items():
        if EXPERT.search(name):
            groups.setdefault(EXPERT.sub(".experts.", name), []).append(curvature)
    together = {group: _count(experts) for group, experts in groups.items()}
    return {
        name: replace(curvature, **together.get(EXPERT.sub(".experts.", name), {}))
        for name, curvature in curvatures.items()
    }


def _count(experts: Sequence[Curvature]) -> dict[str, Any]:
    """Return what the experts of one layer have in common."""
    total = sum(expert.num_tokens for expert in experts)
    mean = sum(float(term.mean()) for expert in experts for term in expert.terms) / len(experts)
    return {"num_tokens": total, "mean_square": mean / max(1, total)}


def fractions(group: Group, target: Curvature | None, general: Curvature | None, protection: Protection) -> np.ndarray:
    """Return which fraction of each delta stays by the diagonals, float64, an array that broadcasts to the shape.

    Raises:
        CurvatureError: The statistics do not fit the tensor.
    """
    shape, alike = group.shape, 1 / (1 + protection.weight)
    a = mean_squares(group, target, protection.ridge)
    g = mean_squares(group, general, protection.ridge)
    both = a + protection.weight * g
    kept = np.divide(a, both, out=np.full(both.shape, alike), where=both > 0)
    return np.where(reached((target, general), shape), kept, alike)


def reached(sides: Sequence[Curvature | None], shape: tuple[int, ...]) -> np.ndarray:
    """Return which experts of a stack some side's data reached, or whether any reached the tensor.

    Booleans, in an array that broadcasts to the shape. Where none did, nothing is known of the inputs: base and
    fine-tune count alike.
    """
    terms = [term for side in sides if side is not None and side.num_tokens for term in side.terms]
    if len(shape) < 3 or not terms or any(term.ndim != len(shape) or term.shape[0] != shape[0] for term in terms):
        return np.full((1,) * len(shape), any(term.any() for term in terms))
    inner = tuple(range(1, len(shape)))
    return np.any([term.any(inner, keepdims=True) for term in terms], axis=0)


def mean_squares(group: Group, curvature: Curvature | None, ridge: float) -> np.ndarray:
    """Return the mean of x² of each element's input, with its ridge; 0 where nothing was seen."""
    if curvature is None or not curvature.terms or not curvature.num_tokens:
        return np.zeros((1,) * len(group.shape))
    mean = sum_of_squares(group.name, curvature, group.shape) / curvature.num_tokens
    return mean + ridge * (mean.mean() if curvature.mean_square is None else curvature.mean_square)


def score_curvature(group: Group, protection: Protection) -> Curvature | None:
    """Return the curvature that drop probabilities go by: the target's, or `A + λ·G` on the target's scale."""
    target, general = group.target, group.base
    if target is None or protection.scores == "target" or general is None:
        return target
    if not general.num_tokens or not target.num_tokens:
        return target
    factor = protection.weight * target.num_tokens / general.num_tokens
    return replace(target, terms=(*target.terms, *(factor * term for term in general.terms)))


def mixing_blocks(
    name: str, target: Any, general: Any, protection: Protection, *, mean_target: float, mean_general: float
) -> list[tuple[slice, Any]]:
    """Return `M = A·(A + λ·G)⁻¹` as its diagonal blocks: which inputs, and a float64 torch tensor over them.

    `δ' = δ·M`; there is one block of all inputs unless `curvature` says otherwise. By Cholesky in float64; M is not
    symmetric.

    Args:
        target, general: E[x·xᵀ], float64 torch tensors of shape (width, width), not yet ridged. They are used up.
        mean_target, mean_general: Mean diagonals that the ridges are fractions of.

    Raises:
        MethodError: A + λ·G is not positive definite, which only a ridge of nearly 0 leaves possible.
    """
    import torch

    width = target.shape[0]
    size = protection.block_size or width
    found = []
    if not bool(target.any()) and not bool(general.any()):  # an expert that neither side's data reached: alike
        return [(slice(0, width), torch.eye(width).to(target) / (1 + protection.weight))]
    for start in range(0, width, size):
        part = slice(start, min(start + size, width))
        # The matrices are large: each is changed in place, and let go of once it has been used.
        a, both = target[part, part], general[part, part]
        a.diagonal().add_(protection.ridge * mean_target)
        both.diagonal().add_(protection.ridge * mean_general)
        both.mul_(protection.weight).add_(a)
        why, hint = f" with a ridge of {protection.ridge:g}", "a larger ridge makes it positive definite"
        factor = cholesky(name, both, why=why, hint=hint)
        del both
        found.append((part, torch.cholesky_solve(a, factor).T))
    return found
