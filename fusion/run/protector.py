"""The tuned sides of a protected fuse: each delta mixed by two-sided curvature, in front of any method.

A matrix transform: `W_pre + δ_k·A_k·(A_k + λ·G)⁻¹` takes the place of tuned model k, whose own inputs A_k are; G is the
base's, the same for all. Where the method is for one model and there are several, they are put together under the one
base term, and the method sees what comes out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar, final

import numpy as np

from ..arithmetic.curvature import Curvature
from ..arithmetic.from_delta import delta_moment, inputs_of
from ..arithmetic.gram import mean_matrix, refuse_other_shapes
from ..arithmetic.group import Group
from ..arithmetic.matrices import CHUNK, Matrices, Models, Rows
from ..arithmetic.per_model import spread
from ..arithmetic.row_layout import row_layout
from ..arithmetic.two_sided import LOW_RANK, Moment, Protection, fractions, mixing_blocks, put_together, reached
from ..device import device_of, float64_device, torch_device
from ..methods import Method

HELD = 4  # tensors that are kept until they are released
MIXINGS = 2  # matrices that are kept for each tuned model: q, k and v come one after the other and share theirs
CHUNK_BYTES = 28 * CHUNK  # of the chunk that is being multiplied: base, tuned, δ and what moves, in float32
PAIR_BYTES = 36  # of a pair of inputs, beside A and G in float64: a factor, the solution, and the copies of each

TARGET_ALONE, GENERAL_ALONE = "target alone", "general alone"  # forms of tensors that only one side reached
INTERPOLATION = "interpolation"  # of what neither did

T = TypeVar("T")
Mixing = list[tuple[slice, Any]]  # which inputs, and a matrix over them
DeltaOf = Callable[[Models, int], Any]  # rows of every model, and which tuned model: its delta, a torch tensor


def joins(method: Method, num_tuned: int) -> bool:
    """Return whether several tuned models are put together before a method sees them, as it is for one."""
    return num_tuned > 1 and method.model_range[1] == 1


@final
class Protector:
    """Gives protected tensors in place of the tuned ones; any thread may ask.

    A diagonal works on any run of elements. With matrices a tensor is made whole, one at a time, and a few are held in
    float32 until they are released.

    Args:
        joins: Put the tuned models together.
        low_rank: Returns the places among the tuned models of those whose deltas are of low rank.
        device: Where matrices are factorised and multiplied, as torch names it.
    """

    def __init__(
        self,
        protection: Protection,
        *,
        joins: bool = False,
        low_rank: Callable[[], frozenset[int]] = frozenset,
        device: str = "cpu",
    ) -> None:
        self.protection = protection
        self._joins = joins
        self._find_low_rank = low_rank
        self._device = device
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._held: OrderedDict[str, OrderedDict[Hashable, Any]] = OrderedDict()
        self._known: list[tuple[list[np.ndarray | None], int, list[tuple[int, Mixing]]]] = []

    def form(self, group: Group, k: int) -> str:
        """Return what a delta is mixed by: the form that was asked for, or what its statistics allow."""
        target, general = group.tuned[k], group.base
        source = self._source(group, k)
        if source != "data":
            if not (general and general.num_tokens):
                return INTERPOLATION if len(group.shape) < 2 else TARGET_ALONE  # biases have no statistics at all
            matrices = self.protection.needs_gram and general.gram is not None
            return source if matrices or source not in ("delta", LOW_RANK) else INTERPOLATION
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
        if form == INTERPOLATION or known.all() or not known.any():
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
        """Return which tuned models are put together; of each party comes one tensor."""
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

    def needs_whole(self, group: Group) -> bool:
        """Whether tensors are made whole before any of their elements is there."""
        return any(self._is_by_matrix(group, party) for party in self._parties(group))

    def tuned(self, group: Group, start: int, stop: int, matrices: Matrices) -> list[np.ndarray]:
        """Return elements `start … stop − 1` of each protected tensor, float32, or float64 where an input is.

        Raises:
            CurvatureError: The statistics do not fit the tensor.
            MethodError: The matrices cannot be factorised.
        """
        parties = self._parties(group)
        by_matrix = [party for party in parties if self._is_by_matrix(group, party)]
        wholes = self._wholes(group, by_matrix, matrices) if by_matrix else {}
        models: Models = matrices.flat(start, stop) if len(by_matrix) < len(parties) else ()
        return [
            wholes[party[0]][start:stop] if party in by_matrix else self._by_element(group, party, models, start)
            for party in parties
        ]

    def release(self, name: str) -> None:
        """Let go of a tensor."""
        with self._lock:
            self._held.pop(name, None)

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

    def _wholes(self, group: Group, parties: list[list[int]], matrices: Matrices) -> dict[int, np.ndarray]:
        with self._lock:
            held = self._held.get(group.name, {}).get("wholes")
        if held is not None:
            return held
        with self._making:  # one at a time: the matrices are large, and torch uses all cores for each
            return self._once(group.name, "wholes", lambda: self._make_wholes(group, parties, matrices))

    def _make_wholes(self, group: Group, parties: list[list[int]], matrices: Matrices) -> dict[int, np.ndarray]:
        """Return what is made of each party, by its first model."""
        import torch

        general = group.base
        assert general is not None
        refuse_other_shapes(group.name, (general, *group.tuned))
        layout = row_layout(group.name, group.shape, general)
        wholes: dict[int, np.ndarray] = {}

        def delta_of(models: Models, k: int) -> Any:
            delta = np.ascontiguousarray(models[k + 1] - models[0])
            return torch.from_numpy(delta).to(device_of(torch_device(self._device), delta.dtype))

        for stack, runs in matrices.stacks(layout):
            mixings = {k: found for party in parties for k, found in self._mixings(group, party, stack, runs, delta_of)}
            for rows, models in runs():
                base = models[0]
                for party in parties:
                    if party[0] not in wholes:
                        wholes[party[0]] = np.empty((layout.stack, layout.rows, layout.width), base.dtype)
                    moved: Any = None
                    for k in party:
                        delta = delta_of(models, k)
                        own = torch.cat([delta[:, part] @ m.to(delta) for part, m in mixings[k]], dim=1)
                        moved = own if moved is None else moved.add_(own)
                    wholes[party[0]][stack, rows] = base + moved.cpu().numpy()
        return {k: layout.join(whole) for k, whole in wholes.items()}

    def _mixings(
        self, group: Group, party: list[int], stack: int, runs: Callable[[], Iterator[Rows]], delta_of: DeltaOf
    ) -> list[tuple[int, Mixing]]:
        """Return the blocks of one of the stacked matrices for each model of a party.

        Those of samples are kept for the next tensors: such as see the same inputs.
        """
        general = group.base
        assert general is not None
        assert general.gram is not None
        sources = [self._source(group, k) for k in party]
        grams = [general.gram, *(target.gram if target is not None else None for target in group.tuned)]
        key = [grams[0], *(grams[k + 1] for k in party)]
        if set(sources) == {"data"}:
            for known, number, made in self._known:
                if number == stack and all(ours is theirs for ours, theirs in zip(known, key, strict=True)):
                    return made
        device = float64_device(torch_device(self._device))
        base = Moment(matrix=mean_matrix(group.name, general, stack, device), mean=_mean_diagonal(general))
        targets = []
        for place, k in enumerate(party):
            if sources[place] == "data":
                targets.append(self._measured(group, k, stack, base, joined=len(party) > 1))
                continue
            own = base.matrix.diagonal().mean()
            if sources[place] in ("delta", LOW_RANK):
                moment = delta_moment(delta_of(models, k).to(device) for _, models in runs())
                matrix = inputs_of(moment, base.matrix)
            else:
                diagonal = base.matrix.diagonal()
                matrix = (own.expand(len(diagonal)) if sources[place] == "identity" else diagonal).diag()
            # The ridge of an expert that no general sample reached: alike on both sides, an interpolation.
            targets.append(Moment(matrix=matrix, mean=float(own) or base.mean))
        shares = self._shares(group)
        weight, counts = self.protection.balance(sources, [shares[k] for k in party])
        blocks = mixing_blocks(group.name, targets, base, self.protection, weight, counts)
        place = torch_device(self._device)
        made = [
            (k, [(part, matrix.float().to(place)) for part, matrix in own])
            for k, own in zip(party, blocks, strict=True)
        ]
        if set(sources) == {"data"}:
            most = MIXINGS * (1 if len(party) > 1 else len(group.tuned))
            self._known = [*self._known[-most + 1 :], (key, stack, made)]
        return made

    def _measured(self, group: Group, k: int, stack: int, base: Moment, *, joined: bool) -> Moment:
        """Return A of target samples. Where models are put together it has G's trace, so that none counts for more
        because its activations are larger, and a λ means the same for all."""
        import torch

        target = group.tuned[k]
        if target is None or target.gram is None or not target.num_tokens:
            return Moment(matrix=torch.zeros_like(base.matrix), mean=0.0)
        matrix, mean = mean_matrix(group.name, target, stack, base.matrix.device), _mean_diagonal(target)
        if not joined or not mean:
            return Moment(matrix=matrix, mean=mean)
        return Moment(matrix=matrix.mul_(base.mean / mean), mean=base.mean)


def _mean_diagonal(curvature: Curvature) -> float:
    """Return the mean of E[x²] over all inputs, of stacked matrices those of all."""
    if curvature.mean_square is not None:
        return curvature.mean_square
    diagonal: Any = np.diagonal(curvature.gram, axis1=-2, axis2=-1)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return float(diagonal.mean(dtype=np.float64)) / curvature.num_tokens
