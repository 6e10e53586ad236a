"""What each adapter adds to a tensor, whatever its coefficient: `W = W_pre + Σ_k α_k·P_k`.

Task arithmetic: `P_k = δ_k`. TIES: δ_k trimmed, where its sign is the elected one, divided by the number of adapters
that agree; DARE-TIES the same with DARE's survivors. The election counts the deltas without their coefficients, as
PEFT does, so P does not depend on α and the merged model is linear in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..fusion.arithmetic.passes import run_on
from ..fusion.arithmetic.random import SEGMENT, tensor_key
from ..fusion.arithmetic.tile import Tile
from ..fusion.checkpoint import Source
from ..fusion.errors import MethodError
from ..fusion.methods.checks import fraction, one_of
from ..fusion.transforms.bernoulli import Drawn
from ..fusion.transforms.merge import agreeing
from ..fusion.transforms.trim import trim

Merge = Literal["task-arithmetic", "ties", "dare-ties", "dare-linear"]


@dataclass(frozen=True, kw_only=True)
class Thinning:
    """How adapters are thinned out before they are weighted.

    Attributes:
        method: Which parts they have.
        density: Fraction of each δ that is kept, by magnitude (TIES) or at random (the DAREs).
        seed: Of the random choice.
    """

    method: Merge = "task-arithmetic"
    density: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("method", self.method, get_args(Merge))
        fraction("density", self.density)
        if self.density == 0:
            raise MethodError("a density of 0 leaves nothing to learn")


def parts_of(name: str, base: Source, adapters: Sequence[Source], thinning: Thinning) -> list[np.ndarray]:
    """Return P of each adapter for one tensor of the base, float32, in its shape."""
    before = base.read(name).astype(np.float32)
    tuned = tuple(adapter.read(name).astype(np.float32) for adapter in adapters)
    for adapter in adapters:
        adapter.release(name)
    shape = base.tensors[name].shape
    if thinning.method == "task-arithmetic":
        return [(other - before).reshape(shape) for other in tuned]
    if len(before) > SEGMENT:
        raise MethodError(f"`{name}` is too large to thin out")
    keys = tuple(tensor_key(thinning.seed, name, stream=k) for k in range(len(tuned)))
    tile = Tile(start=0, base=before, tuned=tuned, keys=keys, root=None)
    if thinning.method == "ties":
        thinned = run_on(tile, trim(thinning.density).settle(len(tuned), len(before))).deltas(tile)
    else:
        survivors = Drawn(keeps=(thinning.density,) * len(tuned)).deltas(tile)
        thinned = [delta / np.float32(thinning.density) for delta in survivors]  # times 1/density would round twice
    if thinning.method == "dare-linear":
        return [delta.reshape(shape) for delta in thinned]
    agree = [part.astype(np.float32) for part in agreeing(thinned, [1.0] * len(thinned), "unweighted")]
    number = np.maximum(np.sum(agree, axis=0), 1)
    return [(delta * part / number).reshape(shape) for delta, part in zip(thinned, agree, strict=True)]
