"""What each adapter adds to a tensor, whatever its coefficient: `W = W_pre + Σ_k α_k·P_k`.

Task arithmetic: `P_k = δ_k`. TIES: δ_k trimmed, where its sign is the elected one, divided by the number of adapters
that agree; DARE-TIES the same with DARE's survivors. The election counts the deltas without their coefficients, as
PEFT does, so P does not depend on α and the merged model is linear in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..fusion.arithmetic.passes import run_on
from ..fusion.arithmetic.random import SEGMENT, tensor_key
from ..fusion.arithmetic.tile import Tile
from ..fusion.checkpoint import Source
from ..fusion.errors import MethodError
from ..fusion.methods import Method, TaskArithmetic
from ..fusion.methods.options import Chained
from ..fusion.transforms.chain import Chain
from ..fusion.transforms.merge import agreeing


@dataclass(frozen=True, kw_only=True)
class LinearMerge:
    """A method that is linear in its weights, which are to be learned.

    Attributes:
        method: Task arithmetic, or a chain that sums, or elects signs by the deltas alone.
        seed: Of a random choice.
    """

    method: Method
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method.identity == "base":
            raise MethodError(f"{self.method.title} with these options has no weights to learn")
        merging = self.chain.merging if self.chain is not None else None
        if merging is None:
            divided = self.method.normalize if isinstance(self.method, TaskArithmetic) else True
        else:
            divided = merging.normalize and not merging.by_number
        if divided or self.method.scope != "tensor" or (merging and merging.election == "weighted"):
            raise MethodError(
                f"{self.method.title} with these options is not linear in its weights, so they cannot be learned",
                hint="an election must be `unweighted`, and nothing divided by the sum of the weights",
            )

    @property
    def chain(self) -> Chain | None:
        """How deltas are selected and merged; None where they are added as they are."""
        return self.method.chain if isinstance(self.method, Chained) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """P of each adapter for one tensor.

    Attributes:
        arrays: float32, in the tensor's shape.
        factors: By what each δ was multiplied in them, where it was kept.
        divided: Whether they are divided by the number of adapters that have a part in an element.
    """

    arrays: list[np.ndarray]
    factors: tuple[float, ...]
    divided: bool = False


def parts_of(name: str, base: Source, adapters: Sequence[Source], merge: LinearMerge) -> Parts:
    """Return P of each adapter for one tensor of the base."""
    before = base.read(name).astype(np.float32)
    tuned = tuple(adapter.read(name).astype(np.float32) for adapter in adapters)
    for adapter in adapters:
        adapter.release(name)
    shape, plain = base.tensors[name].shape, (1.0,) * len(tuned)
    if merge.chain is None:
        return Parts(arrays=[(other - before).reshape(shape) for other in tuned], factors=plain)
    if len(before) > SEGMENT:
        raise MethodError(f"`{name}` is too large to choose elements from")
    keys = tuple(tensor_key(merge.seed, name, stream=k) for k in range(len(tuned)))
    tile = Tile(start=0, base=before, tuned=tuned, keys=keys, root=None)
    kept = run_on(tile, merge.chain.selection.settle(len(tuned), len(before)))
    factors = kept.factors or plain
    thinned = [np.float32(factor) * delta for factor, delta in zip(factors, kept.deltas(tile), strict=True)]
    merging = merge.chain.merging
    if merging.election is None:
        return Parts(arrays=[delta.reshape(shape) for delta in thinned], factors=factors)
    agree = [part.astype(np.float32) for part in agreeing(thinned, [1.0] * len(thinned), "unweighted")]
    number = np.maximum(np.sum(agree, axis=0), 1) if merging.normalize else np.float32(1)
    arrays = [(delta * part / number).reshape(shape) for delta, part in zip(thinned, agree, strict=True)]
    return Parts(arrays=arrays, factors=factors, divided=merging.normalize)
