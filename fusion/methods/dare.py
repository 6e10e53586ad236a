"""DARE: drop deltas at random with one probability, rescale the survivors by `1/(1 − p)`.

    δ̂_k = M_k·δ_k/(1 − p_k),  M_k ~ Bernoulli(1 − p_k)
    W   = W_pre + λ·Σ_k w_k·δ̂_k

Yu et al., Language models are super Mario, ICML 2024 (arXiv:2311.03099); eq. 6 of AdaDARE-γ. Each model has draws of
its own. mergekit calls this `dare_linear` and rescales to the L1 norm that the deltas had before (`--rescale l1`),
which on small tensors is far from `1/(1 − p)`, and infinitely far where everything was dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from array_api_compat import array_namespace

from ..arithmetic.elect import Merging
from ..arithmetic.passes import Fused, Map, Pass, Reduction
from ..arithmetic.sums import block_sums
from ..arithmetic.tile import Tile
from .checks import as_tuple, at_least_zero, each, finite, fraction, one_of, spread
from .method import Method, PerModel
from .task_arithmetic import add_scaled, identity_of, scaling
from .trim import merge_kept

Rescale = Literal["probability", "l1", "none"]


def drop_and_rescale(tile: Tile, keep: float, scale: float) -> Fused:
    """Return `base + (scale/keep)·δ` where an element is kept, else the base's bits.

    Args:
        keep: `1 − p`, in (0, 1).
    """
    xp = array_namespace(tile.base)
    delta = tile.deltas[0]
    kept = tile.draw(xp.asarray(keep, dtype=xp.float32, device=tile.base.device)) & (delta != 0)
    return Fused(values=xp.where(kept, tile.base + (scale / keep) * delta, tile.base), kept=kept)


def survivors(tile: Tile, keeps: tuple[float, ...]) -> list[Any]:
    """Return each model's deltas with those that its own draws drop set to zero; not rescaled."""
    xp = array_namespace(tile.base)
    found = []
    for k, (delta, keep) in enumerate(zip(tile.deltas, keeps, strict=True)):
        kept = tile.draw(xp.asarray(keep, dtype=xp.float32, device=tile.base.device), model=k)
        found.append(xp.where(kept, delta, xp.zeros_like(delta)))
    return found


def l1_sums(tile: Tile, keeps: tuple[float, ...]) -> Any:
    """Return block sums of |δ| and of |δ| of the survivors, two rows a model."""
    xp = array_namespace(tile.base)
    rows = [xp.abs(delta) for delta in (*tile.deltas, *survivors(tile, keeps))]
    return xp.stack([block_sums(row) for row in rows])


def drop_and_merge(
    tile: Tile, keeps: tuple[float, ...], factors: tuple[float, ...], merging: Merging, scale: float
) -> Fused:
    """Return `base + scale·merged` of the survivors times their factors; the base's bits where none has a part."""
    return merge_kept(tile, survivors(tile, keeps), factors, merging, scale)


def factors_of(rescale: Rescale, keeps: tuple[float, ...]):
    """Return by what each model's survivors are multiplied; only `l1` needs a look at the deltas."""
    if rescale == "none":
        return (1.0,) * len(keeps)
    if rescale == "probability":
        return tuple(1 / keep if keep else 1.0 for keep in keeps)
    sums: np.ndarray = yield Pass(function=l1_sums, arguments=(keeps,))
    before, after = sums[: len(keeps)], sums[len(keeps) :]
    return tuple(float(b / a) if a else 1.0 for b, a in zip(before, after, strict=True))


@dataclass(frozen=True, kw_only=True)
class Dare(Method):
    """Drop deltas at random with one probability and rescale the survivors.

    Attributes:
        sparsity: p, the probability of being dropped, in [0, 1]; 1 is the base. One for each model, or one for all.
        scale: λ, the strength of what is kept.
        weights: w, one for each model, separated by commas, or one for all.
        normalize: Divide the weights by their sum.
        rescale: Survivors times `1/(1 − p)` (probability), to the L1 norm of before (l1), or not at all (none).
    """

    sparsity: PerModel = 0.9
    scale: float = 1.0
    weights: PerModel = 1.0
    normalize: bool = False
    rescale: Rescale = "probability"

    name: ClassVar[str] = "dare"
    title: ClassVar[str] = "DARE"
    source: ClassVar[str] = "arXiv:2311.03099"
    random: ClassVar[bool] = True
    max_models: ClassVar[int | None] = None
    per_model: ClassVar[tuple[str, ...]] = ("weights", "sparsity")

    def __post_init__(self) -> None:
        each("sparsity", self.sparsity, fraction)
        at_least_zero("scale", self.scale)
        each("weights", self.weights, finite)
        one_of("rescale", self.rescale, get_args(Rescale))

    @property
    def coefficients(self) -> tuple[float, ...]:
        """`λ·w_k`, normalised where that is asked for."""
        weights = as_tuple(self.weights)
        total = sum(weights) if self.normalize else 1.0
        return tuple(self.scale * weight / (total or 1.0) for weight in weights)

    @property
    def identity(self) -> Literal["base", "tuned"] | None:
        """The base where nothing is added, the tuned model where nothing is dropped and it is added whole."""
        sparsity = as_tuple(self.sparsity)
        if min(sparsity) == 1:
            return "base"
        found = identity_of(self.coefficients)
        return found if found == "base" or max(sparsity) == 0 else None

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (only `l1` looks at the tensor)
        """Return the map; sum the deltas first where they are rescaled to their L1 norm."""
        yield from ()
        weights = as_tuple(self.weights)
        keeps = tuple(1 - p for p in spread("sparsity", self.sparsity, len(weights)))
        if self.identity == "base":
            return Map(function=add_scaled, arguments=(0.0,))
        if min(keeps) == 1:
            return scaling(self.coefficients)
        if len(weights) == 1 and self.rescale == "probability":
            return Map(function=drop_and_rescale, arguments=(keeps[0], *self.coefficients))
        factors = yield from factors_of(self.rescale, keeps)
        merging = Merging(weights=weights, normalize=self.normalize)
        return Map(function=drop_and_merge, arguments=(keeps, factors, merging, self.scale))
