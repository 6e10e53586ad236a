"""Two-sided curvature: a delta stays where the target task needs it and spares what the base's own inputs use.

    min_Θ  Σ_k w_k·‖(Θ − W_k)·A_k^½‖² + λ·‖(Θ − W_pre)·G^½‖²
    ⇒      Θ = W_pre + (Σ_k w_k·δ_k·A_k)·(Σ_k w_k·A_k + λ·G)⁻¹

A and G are means of x·xᵀ over the inputs of a layer: A_k of target samples through tuned model k, G of general
samples through the base. Each gets a ridge, a fraction of its mean diagonal, so that the sum can always be factorised:
an input direction that no side uses is then mixed by 1/(1 + λ·mean G/mean A), one that only general data use goes
back to the base. For one tuned model λ = 0 gives the fine-tune, λ → ∞ the base, A = G an interpolation at 1/(1 + λ). At
λ = 1 it is RegMean (Jin et al., ICLR 2023, arXiv:2212.09849, its eq. 2) of two models; at λ = 0 it is RegMean of K.
With diagonals alone it is a γ for each column, A_jj/(A_jj + λ·G_jj), and for each row of an embedding, by token
frequencies.

Without samples of the target task its delta stands in for A (`from_delta`), or the identity, or the diagonal of G,
each scaled to G's trace. The λ that serves best differs by what A is of; one that was not given is chosen by that.
Where models are merged and each has another, an error on each counts by its own: A_k/λ_k against G.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, Literal, get_args

import numpy as np

from ..errors import MethodError
from ..typed import Options
from .curvature import UNMEASURED, Curvature
from .gram import cholesky, divided
from .group import Group
from .per_element import PerElement, computed
from .per_model import PerModel, as_tuple
from .sums import added
from .tile import checked_terms

EXPERT = re.compile(r"\.experts\.\d+\.")

Target = Literal["auto", "data", "delta", "identity", "general"]
LOW_RANK = "low-rank delta"  # of an adapter, or of one that was merged
# λ where none is given, by what A is of.
WEIGHTS = {"data": 1.0, "delta": 0.1, LOW_RANK: 0.002, "identity": 0.03, "general": 0.1}


@dataclass(frozen=True, kw_only=True)
class Protection(Options):
    """How the base is held where general data go.

    Attributes:
        weight: λ, at least 0: how much an error on general inputs counts against an error of the same size on target
            inputs. Default: 1 with samples of the task; without, 0.1, or 0.002 for an adapter; 0.03 for `identity`,
            0.1 for `general`.
        curvature: `full`, matrices over all inputs of a layer; `block:N`, over N neighbouring inputs; or `diagonal`.
        ridge: Added to the matrices of each side, as a fraction of their mean diagonal.
        scores: Inputs that decide the drop probabilities: those of the `target`, or `both` with λ.
        target: Where the target's curvature comes from: `data`, samples of the task; `delta`, the fine-tuning delta;
            `identity`, all inputs count alike; `general`, the diagonal of the general side. auto: data if there are
            samples, otherwise the delta.
        shares: w of each fine-tune, if several are merged before a method for one model: one number, or one for each
            model, separated by commas.
    """

    weight: float | None = None
    curvature: str = "full"
    ridge: float = 1e-3
    scores: Literal["target", "both"] = "target"
    target: Target = "auto"
    shares: PerModel = 1.0

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 <= self.weight < float("inf"):
            raise MethodError(f"`weight` must be at least 0, got {self.weight}", options=["Protection.weight"])
        if not 0 <= self.ridge < float("inf"):
            raise MethodError(f"`ridge` must be at least 0, got {self.ridge}", options=["Protection.ridge"])
        for field, allowed in (("scores", ("target", "both")), ("target", get_args(Target))):
            if getattr(self, field) not in allowed:
                raise MethodError(
                    f"`{field}` must be one of {', '.join(allowed)}, got `{getattr(self, field)}`",
                    options=[f"Protection.{field}"],
                )
        if self.curvature not in ("full", "diagonal") and not re.fullmatch(r"block:[1-9]\d*", self.curvature):
            raise MethodError(
                f"`curvature` must be full, diagonal or block:N such as block:512, got `{self.curvature}`",
                options=["Protection.curvature"],
            )
        if isinstance(self.shares, list):  # as a recipe has them
            object.__setattr__(self, "shares", tuple(self.shares))
        if not all(0 < share < float("inf") for share in as_tuple(self.shares)):
            raise MethodError(f"`shares` must be above 0, got {self.shares}", options=["Protection.shares"])
        if self.target == "delta" and not self.needs_gram:
            raise MethodError(
                "without matrices the delta says nothing: its diagonal is that of the general side",
                options=["Protection.curvature"],
                hint="use full matrices",
            )

    @property
    def takes_samples(self) -> bool:
        """Whether A is of samples of the target task, where there are any."""
        return self.target in ("auto", "data")

    def source(self, curvature: Curvature | None) -> str:
        """Return what A is of, for a tuned model with these statistics: a key of `WEIGHTS`."""
        if self.takes_samples:
            return "data" if curvature is None or curvature.is_measured else "delta"
        return self.target

    def balance(self, sources: Sequence[str], shares: Sequence[float]) -> tuple[float, list[float]]:
        """Return λ, and what each tuned model's A counts beside it: w_k, times λ/λ_k where they have different λ."""
        own = [WEIGHTS[source] if self.weight is None else self.weight for source in sources]
        most = max(own)
        return most, [share * most / weight if weight else share for share, weight in zip(shares, own, strict=True)]

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
    mean = added(float(term.mean()) for expert in experts for term in expert.terms) / len(experts)
    return {"num_tokens": total, "mean_square": mean / max(1, total)}


def fractions(group: Group, which: Sequence[int], protection: Protection, shares: Sequence[float]) -> list[PerElement]:
    """Return which fraction of each delta stays by the diagonals.

    Args:
        which: Tuned models that are put together.
        shares: Of each of them.

    Raises:
        CurvatureError: The statistics do not fit the tensor.
    """
    general = mean_squares(group, group.base, protection.ridge)
    sources = [protection.source(group.tuned[k]) for k in which]  # interpolated alike, whatever a delta's rank
    weight, counts = protection.balance(sources, shares)
    if "data" not in sources and len(group.shape) > 1 and not (group.base and group.base.num_tokens):
        weight = 0.0  # no general sample came near
    sides = []
    for k, source in zip(which, sources, strict=True):
        if source == "data":
            sides.append(mean_squares(group, group.tuned[k], protection.ridge))
        else:  # the diagonal of a delta's is G's
            sides.append(general.flat() if source == "identity" else general)
    alike = [count / (added(counts) + weight) for count in counts]
    known = reached((group.base, *(group.tuned[k] for k in which)), group.shape)

    def fraction(j: int) -> Callable[..., np.ndarray]:
        def of(known: np.ndarray, *terms: np.ndarray) -> np.ndarray:
            base, *own = apart((general, *sides), terms)
            parts = [one if count == 1 else count * one for one, count in zip(own, counts, strict=True)]
            both = sum(parts) + weight * base
            ratio = np.divide(parts[j], both, out=np.full(both.shape, alike[j]), where=both > 0)
            return np.where(known, ratio, alike[j])

        return of

    arrays = (known, *general.terms, *(term for side in sides for term in side.terms))
    return [computed(fraction(j), arrays, group.shape) for j in range(len(sides))]


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


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanSquares:
    """The mean of x² of each element's input, with a ridge: `Σ terms / num_tokens + ridge`.

    Attributes:
        terms: float64, each broadcasts to the tensor.
    """

    terms: tuple[np.ndarray, ...]
    num_tokens: int
    ridge: float

    def of(self, terms: Sequence[np.ndarray]) -> np.ndarray:
        """Return the means of those elements that the terms are given of."""
        return reduce(np.add, terms) / self.num_tokens + self.ridge

    def flat(self) -> MeanSquares:
        """Return the same for a tensor whose elements all have the mean of these."""
        # Over one array at once: a mean of means would be rounded otherwise.
        mean = float(self.of(self.terms).mean()) if len(self.terms) == 1 else self._mean() + self.ridge
        return MeanSquares(terms=(np.full((1,) * self.terms[0].ndim, mean),), num_tokens=1, ridge=0.0)

    def _mean(self) -> float:
        return added(float((term / self.num_tokens).mean()) for term in self.terms)

    def ridged(self, fraction: float, mean: float | None) -> MeanSquares:
        """Return the same with a fraction of its mean, or of the one given, for a ridge."""
        return replace(self, ridge=fraction * (self._mean() if mean is None else mean))


def mean_squares(group: Group, curvature: Curvature | None, ridge: float) -> MeanSquares:
    """Return the mean of x² of each element's input, with its ridge; 0 where nothing was seen.

    Raises:
        CurvatureError: The statistics do not fit the tensor.
    """
    if curvature is None or not curvature.terms or not curvature.num_tokens:
        return MeanSquares(terms=(np.zeros((1,) * len(group.shape)),), num_tokens=1, ridge=0.0)
    terms = checked_terms(group.name, curvature, group.shape)
    means = MeanSquares(terms=terms, num_tokens=curvature.num_tokens, ridge=0.0)
    return means.ridged(ridge, curvature.mean_square)


def apart(sides: Sequence[MeanSquares], terms: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the means of each side, whose terms follow one another."""
    found, first = [], 0
    for side in sides:
        last = first + len(side.terms)
        found.append(side.of(terms[first:last]))
        first = last
    return found


def put_together(curvatures: Sequence[Curvature | None], shares: Sequence[float]) -> Curvature | None:
    """Return the curvature of a delta that was made of several: their means, added up by shares."""
    found = [
        (curvature, share / curvature.num_tokens)
        for curvature, share in zip(curvatures, shares, strict=True)
        if curvature is not None and curvature.num_tokens
    ]
    if not found:
        return UNMEASURED if any(c is not None and not c.is_measured for c in curvatures) else None
    num_tokens = sum(curvature.num_tokens for curvature, _ in found)
    terms = tuple(factor * num_tokens * term for curvature, factor in found for term in curvature.terms)
    grams = [factor * num_tokens * c.gram for c, factor in found if c.gram is not None]
    whole = sum(grams[1:], grams[0]) if len(grams) == len(found) else None
    return Curvature(terms=terms, num_tokens=num_tokens, gram=whole)


def score_curvature(group: Group, protection: Protection) -> Curvature | None:
    """Return the curvature that drop probabilities go by: the target's, or `A + λ·G` on the target's scale.

    The general side's alone where a delta stands in for target samples, as its diagonal is the general side's.
    """
    target, general = group.target, group.base
    if target is not None and not target.is_measured:
        return general
    if target is None or protection.scores == "target" or general is None:
        return target
    if not general.num_tokens or not target.num_tokens:
        return target
    weight, _ = protection.balance([protection.source(target)], [1.0])
    factor = weight * target.num_tokens / general.num_tokens
    return replace(target, terms=(*target.terms, *(factor * term for term in general.terms)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """E[x·xᵀ] of one side, not yet ridged.

    Attributes:
        matrix: Float64 torch tensor, (width, width). It is used up.
        mean: The mean diagonal that its ridge is a fraction of.
    """

    matrix: Any
    mean: float


def mixing_blocks(
    name: str,
    targets: Sequence[Moment],
    general: Moment,
    protection: Protection,
    weight: float,
    counts: Sequence[float],
) -> list[list[tuple[slice, Any]]]:
    """Return `M_k = w_k·A_k·(Σ_j w_j·A_j + λ·G)⁻¹` of each target as its diagonal blocks.

    A block is which inputs, and a float32 torch tensor over them. `δ' = Σ_k δ_k·M_k`; there is one block of all inputs
    unless `curvature` says otherwise. By Cholesky in float64; M is not symmetric.

    Args:
        weight: λ.
        counts: w, of each target.

    Raises:
        MethodError: The sum is not positive definite, which only a ridge of nearly 0 leaves possible.
    """
    import torch

    width = general.matrix.shape[0]
    size = protection.block_size or width
    if not any(bool(side.matrix.any()) for side in (general, *targets)):  # an expert that no data reached: alike
        whole = torch.eye(width, dtype=torch.float64) / (added(counts) + weight)
        return [[(slice(0, width), (whole * count).float().to(general.matrix.device))] for count in counts]
    found: list[list[tuple[slice, Any]]] = [[] for _ in targets]
    for start in range(0, width, size):
        part = slice(start, min(start + size, width))
        # The matrices are large: each is changed in place.
        both = general.matrix[part, part]
        both.diagonal().add_(protection.ridge * general.mean)
        both.mul_(weight)
        for target, count in zip(targets, counts, strict=True):
            a = target.matrix[part, part]
            a.diagonal().add_(protection.ridge * target.mean)
            both.add_(a if count == 1 else a.mul_(count))
        why, hint = f" with a ridge of {protection.ridge:g}", "a larger ridge makes it positive definite"
        factor = cholesky(name, both, why=why, hint=hint)
        for blocks, target in zip(found, targets, strict=True):
            blocks.append((part, divided(target.matrix[part, part], factor, torch.float32)))
    return found
