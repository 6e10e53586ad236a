"""The tuned sides of a protected fuse: each delta mixed by two-sided curvature, in front of any method.

A matrix transform: `W_pre + δ_k·A_k·(A_k + λ·G)⁻¹` takes the place of tuned model k, whose own inputs A_k are; G is the
base's, the same for all.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, TypeVar, final

import numpy as np

from ..arithmetic.curvature import Curvature
from ..arithmetic.gram import mean_matrix, refuse_other_shapes
from ..arithmetic.group import Group
from ..arithmetic.matrices import CHUNK, Matrices, Models
from ..arithmetic.per_element import per_element
from ..arithmetic.row_layout import row_layout
from ..arithmetic.two_sided import Protection, fractions, mixing_blocks, reached
from ..device import float64_device, torch_device

HELD = 4  # tensors that are kept until they are released
MIXINGS = 2  # matrices that are kept for each tuned model: q, k and v come one after the other and share theirs
CHUNK_BYTES = 28 * CHUNK  # of the chunk that is being multiplied: base, tuned, δ and what moves, in float32
PAIR_BYTES = 36  # of a pair of inputs, beside A and G in float64: a factor, the solution, and the copies of each

TARGET_ALONE, GENERAL_ALONE = "target alone", "general alone"  # forms of tensors that only one side reached
INTERPOLATION = "interpolation"  # of what neither did
BY_ELEMENT = (INTERPOLATION, "diagonal", TARGET_ALONE, GENERAL_ALONE)  # forms without matrices

T = TypeVar("T")
Mixing = list[tuple[slice, Any]]  # which inputs, and a matrix over them
Sides = tuple[Curvature | None, Curvature | None]  # of the target and of general data


@final
class Protector:
    """Gives protected tensors in place of the tuned ones; any thread may ask.

    A diagonal works on any run of elements. With matrices a tensor is made whole, one at a time, and a few are held in
    float32 until they are released.

    Args:
        device: Where matrices are factorised and multiplied, as torch names it.
    """

    def __init__(self, protection: Protection, *, device: str = "cpu") -> None:
        self.protection = protection
        self._device = device
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._held: OrderedDict[str, OrderedDict[Hashable, Any]] = OrderedDict()
        self._mixings: list[tuple[np.ndarray, np.ndarray, int, Mixing]] = []

    def form(self, sides: Sides, shape: tuple[int, ...]) -> str:
        """Return what a delta is mixed by: the form that was asked for, or what its statistics allow."""
        if not reached(sides, shape).any():
            return INTERPOLATION
        target, general = sides
        if not (general and general.num_tokens):
            return TARGET_ALONE
        if not (target and target.num_tokens):
            return GENERAL_ALONE
        if self.protection.needs_gram and target.gram is not None and general.gram is not None:
            return self.protection.curvature
        return "diagonal"

    def forms(self, group: Group) -> str:
        """Return the form of each tuned model's delta, those that are alike once, for a record."""
        return ", ".join(dict.fromkeys(self._described((target, group.base), group.shape) for target in group.tuned))

    def _described(self, sides: Sides, shape: tuple[int, ...]) -> str:
        form = self.form(sides, shape)
        beside = np.flatnonzero(~reached(sides, shape)) if form != INTERPOLATION else ()
        return f"{form} but {INTERPOLATION} of {' '.join(map(str, beside))}" if len(beside) else form

    def _by_matrix(self, group: Group) -> list[int]:
        """Return which tuned models' deltas are mixed by matrices."""
        if not self.protection.weight:
            return []
        return [
            k for k, target in enumerate(group.tuned) if self.form((target, group.base), group.shape) not in BY_ELEMENT
        ]

    def needs_whole(self, group: Group) -> bool:
        """Whether tensors are made whole before any of their elements is there."""
        return bool(self._by_matrix(group))

    def tuned(self, group: Group, start: int, stop: int, matrices: Matrices) -> list[np.ndarray]:
        """Return elements `start … stop − 1` of each protected tensor, float32, or float64 where an input is.

        Raises:
            CurvatureError: The statistics do not fit the tensor.
            MethodError: The matrices cannot be factorised.
        """
        by_matrix = self._by_matrix(group)
        wholes = self._wholes(group, by_matrix, matrices) if by_matrix else {}
        models: Models = matrices.flat(start, stop) if len(by_matrix) < len(group.tuned) else ()
        return [
            wholes[k][start:stop] if k in wholes else self._by_element(group, k, models[0], models[k + 1], start)
            for k in range(len(group.tuned))
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

    def _by_element(self, group: Group, k: int, base: np.ndarray, tuned: np.ndarray, start: int) -> np.ndarray:
        if self.protection.weight == 0:
            return tuned
        target = group.tuned[k]
        kept = self._once(
            group.name, k, lambda: per_element(fractions(group, target, group.base, self.protection), group.shape)
        )
        part = kept.expand(start, len(base))
        return np.where(part == 1, tuned, base + part * (tuned - base))

    def _wholes(self, group: Group, which: list[int], matrices: Matrices) -> dict[int, np.ndarray]:
        with self._lock:
            held = self._held.get(group.name, {}).get("wholes")
        if held is not None:
            return held
        with self._making:  # one at a time: the matrices are large, and torch uses all cores for each
            return self._once(group.name, "wholes", lambda: self._make_wholes(group, which, matrices))

    def _make_wholes(self, group: Group, which: list[int], matrices: Matrices) -> dict[int, np.ndarray]:
        import torch

        device, general = torch_device(self._device), group.base
        assert general is not None
        refuse_other_shapes(group.name, (general, *(group.tuned[k] for k in which)))
        target = group.tuned[which[0]]
        assert target is not None
        layout = row_layout(group.name, group.shape, target)
        wholes: dict[int, np.ndarray] = {}
        for stack, rows, models in matrices.chunks(layout):
            base = models[0]
            for k in which:
                if k not in wholes:
                    wholes[k] = np.empty((layout.stack, layout.rows, layout.width), base.dtype)
                delta = torch.from_numpy(np.ascontiguousarray(models[k + 1] - base)).to(device)
                mixing = self._mixing(group, k, stack)
                moved = torch.cat([delta[:, part] @ matrix.to(delta.dtype) for part, matrix in mixing], dim=1)
                wholes[k][stack, rows] = base + moved.cpu().numpy()
        return {k: layout.join(whole) for k, whole in wholes.items()}

    def _mixing(self, group: Group, k: int, stack: int) -> Mixing:
        """Return the blocks of one of the stacked matrices; shared by tensors that see the same inputs."""
        target, general = group.tuned[k], group.base
        assert target is not None
        assert general is not None
        assert target.gram is not None
        assert general.gram is not None
        for ours, theirs, number, mixing in self._mixings:
            if ours is target.gram and theirs is general.gram and number == stack:
                return mixing
        device = float64_device(torch_device(self._device))
        matrices = [mean_matrix(group.name, side, stack, device) for side in (target, general)]
        blocks = mixing_blocks(
            group.name,
            matrices[0],
            matrices[1],
            self.protection,
            mean_target=_mean_square(target),
            mean_general=_mean_square(general),
        )
        mixing = [(part, matrix.float().to(torch_device(self._device))) for part, matrix in blocks]
        most = MIXINGS * len(group.tuned)
        self._mixings = [*self._mixings[-most + 1 :], (target.gram, general.gram, stack, mixing)]
        return mixing


def _mean_square(curvature: Curvature) -> float:
    """Return the mean of x² that a ridge is a fraction of."""
    if curvature.mean_square is not None:
        return curvature.mean_square
    diagonal: Any = np.diagonal(curvature.gram, axis1=-2, axis2=-1)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return float(diagonal.mean(dtype=np.float64)) / curvature.num_tokens
