"""Deltas multiplied by two-sided curvature's matrices, a run of rows at a time; matrices and a few runs are kept."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from ..arithmetic.curvature import Curvature
from ..arithmetic.from_delta import delta_moment, inputs_of
from ..arithmetic.gram import STRIP, mean_matrix, refuse_other_shapes
from ..arithmetic.group import Group
from ..arithmetic.matrices import CHUNK, Matrices, Models, Rows
from ..arithmetic.row_layout import RowLayout, row_layout
from ..arithmetic.two_sided import LOW_RANK, Moment, Protection, mixing_blocks
from ..device import device_of, float64_device, torch_device

HELD = 4  # tensors of which something is kept where all of a block or model are gone through more than once
MIXINGS = 2  # whose tensors are done, and that are kept: q, k and v come one after the other and share theirs
RUNS_BYTES = 1 << 26  # of runs that are kept, for tensors that are gone through more than once
CHUNK_BYTES = 28  # an element's of the run that is being multiplied: base, tuned, δ and what moves, in float32

Mixing = list[tuple[slice, Any]]  # which inputs, and a matrix over them
Runs = Callable[[], Iterator[Rows]]  # the rows of one of the stacked matrices, as often as it is called


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Tuned models of one tensor that are mixed by matrices.

    Attributes:
        parties: Places of tuned models; those of one party are put together.
        sources: What A of each tuned model is of.
        shares: Of each tuned model.
    """

    group: Group
    parties: Sequence[Sequence[int]]
    sources: Sequence[str]
    shares: Sequence[float]
    matrices: Matrices


@final
@dataclass(kw_only=True, eq=False)
class _Solved:
    """The matrices that deltas are multiplied by.

    Attributes:
        key: What they were made of; parts that are arrays are compared by identity.
        users: Names of tensors under way that they serve.
    """

    key: tuple[Any, ...]
    mixings: dict[int, Mixing]
    users: set[str]

    def is_of(self, key: tuple[Any, ...]) -> bool:
        return len(key) == len(self.key) and all(
            ours is theirs or (not isinstance(ours, np.ndarray) and ours == theirs)
            for ours, theirs in zip(self.key, key, strict=True)
        )


@final
class Mixer:
    """Makes `W_pre + Σ_k δ_k·M_k` of any run of elements; any thread may ask.

    One thread at a time works on matrices: they are large, and torch uses all cores for each.

    Args:
        device: Where matrices are factorised and multiplied, as torch names it.
        most: Tensors under way whose matrices are kept at once; None is all.
    """

    def __init__(self, protection: Protection, *, device: str, most: int | None) -> None:
        self._protection, self._device, self._most = protection, device, most
        self._making = threading.Lock()
        self._runs: OrderedDict[tuple[str, int], dict[int, np.ndarray]] = OrderedDict()
        self._solved: list[_Solved] = []

    def elements(self, mixed: Mixed, start: int, stop: int) -> dict[int, np.ndarray]:
        """Return elements `start … stop − 1` of each party, by its first model.

        Raises:
            CurvatureError: The statistics do not fit the tensor.
            MethodError: The matrices cannot be factorised.
        """
        group = mixed.group
        assert group.base is not None
        refuse_other_shapes(group.name, (group.base, *group.tuned))
        layout = row_layout(group.name, group.shape, group.base)
        found: dict[int, list[np.ndarray]] = {party[0]: [] for party in mixed.parties}
        for run in layout.runs(CHUNK, start, stop):
            made = self._run(mixed, layout, run)
            for party, values in made.items():
                found[party].append(values[max(start - run.start, 0) : stop - run.start])
        return {party: parts[0] if len(parts) == 1 else np.concatenate(parts) for party, parts in found.items()}

    def release(self, name: str) -> None:
        """Let go of a tensor's runs, and of matrices that serve no other."""
        with self._making:
            for key in [key for key in self._runs if key[0] == name]:
                del self._runs[key]
            for solved in self._solved:
                solved.users.discard(name)
            self._let_go(MIXINGS)

    def _let_go(self, most: int) -> None:
        """Let go of matrices that serve no tensor under way, the oldest first, all but `most`."""
        if self._most is not None:
            self._solved = self._solved[-self._most :]
        idle = [solved for solved in self._solved if not solved.users]
        for solved in idle[: max(0, len(idle) - most)]:
            self._solved.remove(solved)

    def _run(self, mixed: Mixed, layout: RowLayout, run: range) -> dict[int, np.ndarray]:
        key = (mixed.group.name, run.start)
        with self._making:
            if key not in self._runs:
                made = self._made(mixed, layout, run)
                nbytes = _num_bytes([made])
                while self._runs and nbytes + _num_bytes(self._runs.values()) > RUNS_BYTES:
                    self._runs.popitem(last=False)
                self._runs[key] = made
            self._runs.move_to_end(key)
            return self._runs[key]

    def _made(self, mixed: Mixed, layout: RowLayout, run: range) -> dict[int, np.ndarray]:
        """Return a run of each party."""
        import torch

        stack = run.start // (layout.rows * layout.width)
        mixings = self._mixings_of(mixed, layout, stack)
        models, found = mixed.matrices.rows(layout, run), {}
        for party in mixed.parties:
            moved: Any = None
            for k in party:
                delta = self._delta_of(models, k)
                own = torch.cat([delta[:, part] @ m.to(delta) for part, m in mixings[k]], dim=1)
                moved = own if moved is None else moved.add_(own)
            rows = models[0] + moved.cpu().numpy()
            found[party[0]] = rows.reshape(-1) if layout.is_in_order else layout.one.join(rows[None])
        return found

    def _delta_of(self, models: Models, k: int) -> Any:
        import torch

        delta = np.ascontiguousarray(models[k + 1] - models[0])
        return torch.from_numpy(delta).to(device_of(torch_device(self._device), delta.dtype))

    def _mixings_of(self, mixed: Mixed, layout: RowLayout, stack: int) -> dict[int, Mixing]:
        """Return the blocks of one of the stacked matrices for each model.

        Those of samples serve the next tensors too: such as see the same inputs.
        """
        name, places = mixed.group.name, tuple(k for party in mixed.parties for k in party)
        grams = [side.gram if side is not None else None for side in mixed.group.curvatures]
        is_shared = all(mixed.sources[k] == "data" for k in places)
        key = (None if is_shared else name, stack, places, grams[0], *(grams[k + 1] for k in places))
        for solved in self._solved:
            if solved.is_of(key):
                solved.users.add(name)
                return solved.mixings
        if layout.stack > 1:  # the matrices before are done with, but for tiles that come late
            for solved in self._solved:
                solved.users.discard(name)
        self._let_go(MIXINGS - 1)
        runs = functools.partial(mixed.matrices.runs, layout, stack)
        made = dict(found for party in mixed.parties for found in self._solve(mixed, party, stack, runs))
        self._solved.append(_Solved(key=key, mixings=made, users={name}))
        return made

    def _solve(self, mixed: Mixed, party: Sequence[int], stack: int, runs: Runs) -> list[tuple[int, Mixing]]:
        """Return the blocks of one of the stacked matrices for each model of a party."""
        group, general = mixed.group, mixed.group.base
        assert general is not None
        sources = [mixed.sources[k] for k in party]
        device = float64_device(torch_device(self._device))
        base = Moment(matrix=mean_matrix(group.name, general, stack, device), mean=_mean_diagonal(general))
        targets = []
        for k, source in zip(party, sources, strict=True):
            if source == "data":
                targets.append(_measured(group, k, stack, base, joined=len(party) > 1))
                continue
            own = base.matrix.diagonal().mean()
            if source in ("delta", LOW_RANK):
                moment = delta_moment(self._delta_of(models, k).to(device) for _, models in runs())
                matrix = inputs_of(moment, base.matrix)
            else:
                diagonal = base.matrix.diagonal()
                matrix = (own.expand(len(diagonal)) if source == "identity" else diagonal).diag()
            # The ridge of an expert that no general sample reached: alike on both sides, an interpolation.
            targets.append(Moment(matrix=matrix, mean=float(own) or base.mean))
        weight, counts = self._protection.balance(sources, [mixed.shares[k] for k in party])
        blocks = mixing_blocks(group.name, targets, base, self._protection, weight, counts)
        place = torch_device(self._device)
        return [(k, [(part, m.to(place)) for part, m in own]) for k, own in zip(party, blocks, strict=True)]


def solving_bytes(
    elements: int, inputs: int, num_models: int, protection: Protection, *, joined: bool, by_tensor: bool
) -> int:
    """Return what mixing a tensor takes while it is worked on: one tensor at a time is.

    Args:
        elements: Of the tensor.
        inputs: At most, of one of its matrices.
        joined: Whether the tuned models are put together.
        by_tensor: Whether few tensors are under way at once; else what is kept of some is counted here.
    """
    sides = 1 + (num_models if joined else 1)  # G, and the matrices A that are there at once
    matrices = 8 * sides * inputs * inputs + 24 * min(STRIP, inputs) * inputs
    run = min(elements, CHUNK)
    runs = 4 * num_models * min(elements, max(RUNS_BYTES // 4, run)) + (CHUNK_BYTES + 8 * (num_models - 1)) * run
    kept = MIXINGS - 1 if by_tensor else HELD + 1
    return matrices + kept * mixing_bytes(inputs, num_models, protection) + runs


def mixing_bytes(inputs: int, num_models: int, protection: Protection) -> int:
    """Return what is kept of a tensor while it is under way: the matrices that its deltas are multiplied by."""
    return 4 * num_models * inputs * min(inputs, protection.block_size or inputs)


def _measured(group: Group, k: int, stack: int, base: Moment, *, joined: bool) -> Moment:
    """Return A of target samples.

    Where models are put together it has G's trace, so that none counts for more because its activations are larger,
    and a λ means the same for all.
    """
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


def _num_bytes(runs: Iterable[dict[int, np.ndarray]]) -> int:
    return sum(values.nbytes for made in runs for values in made.values())
