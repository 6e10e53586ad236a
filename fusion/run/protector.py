"""The tuned sides of a protected fuse: each delta mixed by two-sided curvature, in front of any method.

A matrix transform: `W_pre + δ_k·A_k·(A_k + λ·G)⁻¹` takes the place of tuned model k, whose own inputs A_k are; G is the
base's, the same for all. Where the method is for one model and there are several, they are put together under the one
base term, and the method sees what comes out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar, final

import numpy as np

from ..arithmetic.group import Group
from ..arithmetic.matrices import Matrices, Models
from ..arithmetic.per_model import spread
from ..arithmetic.two_sided import LOW_RANK, Protection, fractions, put_together, reached
from ..methods import Method
from .mixer import HELD, Mixed, Mixer

TARGET_ALONE, GENERAL_ALONE = "target alone", "general alone"  # forms of tensors that only one side reached
INTERPOLATION = "interpolation"  # of what neither did
BY_DESIGN = "interpolated by design"  # of what a delta tells nothing of: embeddings, norms, biases

T = TypeVar("T")


def joins(method: Method, num_tuned: int) -> bool:
    """Return whether several tuned models are merged before a method sees them, as it is for one."""
    return num_tuned > 1 and method.model_range[1] == 1


@final
class Protector:
    """Gives protected tensors in place of the tuned ones; any thread may ask.

    A diagonal works on any run of elements; of matrices a `Mixer` makes the runs of rows that the elements lie in.

    Args:
        joins: Put the tuned models together.
        by_tensor: Whether few tensors are under way at once, not all of a block or model that share a reduction.
        low_rank: Returns the places among the tuned models of those whose deltas are of low rank.
        device: Where matrices are factorised and multiplied, as torch names it.
    """

    def __init__(
        self,
        protection: Protection,
        *,
        joins: bool = False,
        by_tensor: bool = True,
        low_rank: Callable[[], frozenset[int]] = frozenset,
        device: str = "cpu",
    ) -> None:
        self.protection = protection
        self._joins = joins
        self._find_low_rank = low_rank
        self._mixer = Mixer(protection, device=device, most=None if by_tensor else HELD)
        self._lock = threading.Lock()
        self._held: OrderedDict[str, OrderedDict[Hashable, Any]] = OrderedDict()

    def form(self, group: Group, k: int) -> str:
        """Return what a delta is mixed by: the form that was asked for, or what its statistics allow."""
        target, general = group.tuned[k], group.base
        source = self._source(group, k)
        if source != "data":
            if not (general and general.num_tokens):
                return BY_DESIGN if len(group.shape) < 2 else TARGET_ALONE  # biases have no statistics at all
            matrices = self.protection.needs_gram and general.gram is not None
            return source if matrices or source not in ("delta", LOW_RANK) else BY_DESIGN
        if not reached((target, general), group.shape).any():
            return INTERPOLATION
        if not (general and general.num_tokens):
            return TARGET_ALONE
        if not (target and target.num_tokens):
            return GENERAL_ALONE
        if self.protection.needs_gram and target.gram is not None and general.gram is not None:
            return self.protection.curvature
        return "diagonal"

    def forms(self, group: Group) -> str:
        """Return the form of each tuned model's delta, those that are alike once, for a record."""
        return ", ".join(dict.fromkeys(self._described(group, k) for k in range(len(group.tuned))))

    def _described(self, group: Group, k: int) -> str:
        """Return the form, and of which experts of a stack it is none as no data reached them."""
        form, known = self.form(group, k), reached((group.tuned[k], group.base), group.shape)
        if form in (INTERPOLATION, BY_DESIGN) or known.all() or not known.any():
            return form
        return f"{form} but {INTERPOLATION} of {' '.join(map(str, np.flatnonzero(~known)))}"

    def seen(self, group: Group) -> Group:
        """Return what the method is told of a tensor: of one tuned model, where they are put together."""
        if not self._joins or len(group.tuned) < 2:
            return group
        together = put_together(group.tuned, self._shares(group))
        return replace(group, curvatures=(group.base, together))

    @cached_property
    def _low_rank(self) -> frozenset[int]:
        return self._find_low_rank()

    def _source(self, group: Group, k: int) -> str:
        """Return what A of a tuned model is of; without a λ that was given the rank of its delta matters."""
        source = self.protection.source(group.tuned[k])
        return LOW_RANK if source == "delta" and self.protection.weight is None and k in self._low_rank else source

    def _shares(self, group: Group) -> Sequence[float]:
        return spread("shares", self.protection.shares, len(group.tuned)) if self._joins else (1.0,) * len(group.tuned)

    def _parties(self, group: Group) -> list[list[int]]:
        """Return which tuned models are merged; of each party comes one tensor."""
        every = list(range(len(group.tuned)))
        return [every] if self._joins else [[k] for k in every]

    def _is_by_matrix(self, group: Group, party: list[int]) -> bool:
        """Return whether the deltas of a party are mixed by matrices."""
        general, protection = group.base, self.protection
        if protection.weight == 0 and len(party) == 1:
            return False
        if not protection.needs_gram or general is None or general.gram is None or not general.num_tokens:
            return False
        known = [group.tuned[k] for k in party if protection.source(group.tuned[k]) == "data"]
        reached = [target for target in known if target is not None and target.num_tokens]
        return all(target.gram is not None for target in reached) and (bool(reached) or len(known) < len(party))

    def tuned(self, group: Group, start: int, stop: int, matrices: Matrices) -> list[np.ndarray]:
        """Return elements `start … stop − 1` of each protected tensor, float32, or float64 where an input is.

        Raises:
            CurvatureError: The statistics do not fit the tensor.
            MethodError: The matrices cannot be factorised.
        """
        parties = self._parties(group)
        by_matrix = [party for party in parties if self._is_by_matrix(group, party)]
        mixed = self._mixed(group, by_matrix, matrices, start, stop) if by_matrix else {}
        models: Models = matrices.flat(start, stop) if len(by_matrix) < len(parties) else ()
        return [
            mixed[party[0]] if party in by_matrix else self._by_element(group, party, models, start)
            for party in parties
        ]

    def _mixed(
        self, group: Group, parties: list[list[int]], matrices: Matrices, start: int, stop: int
    ) -> dict[int, np.ndarray]:
        sources = [self._source(group, k) for k in range(len(group.tuned))]
        mixed = Mixed(group=group, parties=parties, sources=sources, shares=self._shares(group), matrices=matrices)
        return self._mixer.elements(mixed, start, stop)

    def release(self, name: str) -> None:
        """Let go of a tensor."""
        with self._lock:
            self._held.pop(name, None)
        self._mixer.release(name)

    def _once(self, name: str, key: Hashable, make: Any) -> Any:
        """Return what was made of a tensor before, or make it; of the tensors that are held the oldest goes."""
        with self._lock:
            held = self._held.get(name)
            if held is not None and key in held:
                return held[key]
        made = make()
        with self._lock:
            while name not in self._held and len(self._held) >= HELD:
                self._held.popitem(last=False)
            self._held.setdefault(name, OrderedDict())[key] = made
        return made

    def _by_element(self, group: Group, party: list[int], models: Models, start: int) -> np.ndarray:
        base = models[0]
        if self.protection.weight == 0 and len(party) == 1:
            return models[party[0] + 1]
        shares = self._shares(group)
        kept = self._once(
            group.name,
            party[0],
            lambda: fractions(group, party, self.protection, [shares[k] for k in party]),
        )
        parts = [one.expand(start, len(base)) for one in kept]
        tuned = [models[k + 1] for k in party]
        moved = parts[0] * (tuned[0] - base)
        for part, own in zip(parts[1:], tuned[1:], strict=True):
            moved += part * (own - base)
        return base + moved if len(party) > 1 else np.where(parts[0] == 1, tuned[0], base + moved)
