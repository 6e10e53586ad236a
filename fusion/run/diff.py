"""How far two checkpoints lie apart, tensor by tensor; and which tensors do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from ..arithmetic.passes import Finding, Pass, Reduction
from ..arithmetic.sums import block_sums, exact_total
from ..arithmetic.tile import RawTile
from ..checkpoint import Source, TensorInfo, open_checkpoint
from ..checkpoint.given import Given as Model
from ..checkpoint.given import takes_models
from ..checkpoint.relaid import relaid
from ..device import all_cores
from ..errors import CurvatureError
from ..methods import Method
from ..names import align
from ..plan.plan import Plan
from ..plan.step import Step
from ..progress import Progress, silent, watched
from ..table import Table
from .backend import KERNEL_TILE, NumpyBackend
from .look import look, pair_plan

SHOWN = 20  # rows in a notebook
LARGEST = 3  # the row of `distances` that holds maxima


@dataclass(frozen=True, kw_only=True)
class TensorDiff:
    """One tensor of both checkpoints, `second − first`.

    Attributes:
        changed: Share of elements that differ, in [0, 1].
        relative_norm: ‖second − first‖₂ / ‖first‖₂; infinite where the first is all zero and the second is not.
        largest: Largest |second − first|.
    """

    name: str
    num_elements: int
    changed: float
    relative_norm: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class CheckpointDiff:
    """What both have, in file order; what only one has; what has another shape or dtype."""

    tensors: tuple[TensorDiff, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    other_form: tuple[str, ...]

    def __repr__(self) -> str:
        changed = sum(tensor.changed > 0 for tensor in self.tensors)
        return f"CheckpointDiff({changed} of {len(self.tensors)} tensors differ)"

    def _repr_html_(self) -> str:
        return self.table(SHOWN).html()

    def table(self, most: int | None = None) -> Table:
        """Return a row a tensor, those that moved most first.

        Args:
            most: How many rows; None for all.
        """
        moved = sorted(self.tensors, key=lambda tensor: -tensor.relative_norm)[:most]
        rows = [[t.name, f"{t.changed:.2%}", f"{t.relative_norm:.3%}", f"{t.largest:.3g}"] for t in moved]
        left = len(self.tensors) - len(moved)
        columns = ["tensor", "changed", "‖δ‖/‖W‖", "largest |δ|"]
        return Table(columns=columns, rows=rows, title=repr(self), note=f"and {left} more" if left else "")


def _differs(tile: RawTile) -> np.ndarray:
    """Return which elements differ in any bit."""
    found = np.zeros(len(tile.base), bool)
    for second in tile.tuned:
        first = tile.base
        if first.dtype != second.dtype:  # what an adapter makes is wider than its base; either may be
            wide = np.float64 if np.float64 in (first.dtype, second.dtype) else np.float32
            first, second = first.astype(wide), second.astype(wide)
        found |= first.view(f"V{first.itemsize}") != second.view(f"V{second.itemsize}")
    return found


def num_differing(tile: RawTile) -> np.ndarray:
    """Return block sums of how many elements differ."""
    return block_sums(_differs(tile))[None]


def distances(tile: RawTile) -> np.ndarray:
    """Return block sums of how many elements differ, of δ² and of first², and block maxima of |δ|; float64."""
    with np.errstate(all="ignore"):
        kind = np.result_type(tile.base, tile.tuned[0], np.float64)  # complex numbers stay such
        wide = tile.base.astype(kind)
        delta, size = np.abs(tile.tuned[0].astype(kind) - wide), np.abs(wide)
        sums = [block_sums(row) for row in (_differs(tile), delta * delta, size * size)]
    return np.stack([*sums, np.maximum.reduceat(delta, np.arange(0, len(delta), 4096))])


def _totals(tiles: Sequence[np.ndarray]) -> tuple[float, ...]:
    largest = max(float(tile[LARGEST].max()) for tile in tiles)
    return (*map(float, exact_total([tile[:LARGEST] for tile in tiles])), largest)


@dataclass(frozen=True, kw_only=True)
class Distances(Method):
    """Find how many elements differ, Σδ², Σfirst² and the largest |δ|."""

    name: ClassVar[str] = "distances"
    title: ClassVar[str] = "distances"
    source: ClassVar[str] = "sculpt"

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002 (the sums tell all)
        """Return the four figures."""
        return Finding(value=(yield Pass(function=distances, combine=_totals, as_stored=True)))


@dataclass(frozen=True, kw_only=True)
class Differs(Method):
    """Find whether any bit differs: of a tensor that was trained the first tile tells."""

    name: ClassVar[str] = "differs"
    title: ClassVar[str] = "differs"
    source: ClassVar[str] = "sculpt"

    def reduce(self, num_elements: int) -> Reduction:  # noqa: ARG002
        """Return whether one does."""
        [count] = yield Pass(function=num_differing, as_stored=True, first_only=True)
        if not count:
            [count] = yield Pass(function=num_differing, as_stored=True)
        return Finding(value=bool(count))


def _same_form(one: TensorInfo, other: TensorInfo) -> bool:
    return one.shape == other.shape and one.dtype in (other.dtype, other.stored)


def _pairs(first: Source, second: Source) -> tuple[list[tuple[TensorInfo, TensorInfo]], dict[str, str]]:
    """Return the tensors that both have in one form, and all matched names."""
    shapes = [{name: info.shape for name, info in checkpoint.tensors.items()} for checkpoint in (first, second)]
    matched = dict(align(shapes[0], shapes[1]).pairs)
    both = [(info, second.tensors[matched[name]]) for name, info in first.tensors.items() if name in matched]
    return [(one, other) for one, other in both if _same_form(one, other)], matched


def _backend() -> NumpyBackend:
    return NumpyBackend(threads=all_cores(), tile_elements=KERNEL_TILE // 2)


@watched
@takes_models("first", "second")
def diff(first: Model, second: Model, *, progress: Progress = silent) -> CheckpointDiff:
    """Compare two checkpoints; names and layouts that differ are matched as a fuse matches them.

    Raises:
        CheckpointError: One of them cannot be read.
    """
    a = open_checkpoint(first)
    b = relaid(open_checkpoint(second, a), a)
    pairs, matched = _pairs(a, b)
    plan = pair_plan(a, b, pairs, Distances())
    found = look(plan, _backend(), progress=progress)
    compared = {step.name for step in plan.steps}
    return CheckpointDiff(
        tensors=tuple(_tensor_diff(step, found.get(step.name, (0.0,) * 4)) for step in plan.steps),
        only_first=tuple(name for name in a.tensors if name not in matched),
        only_second=tuple(name for name in b.tensors if name not in set(matched.values())),
        other_form=tuple(name for name in matched if name not in compared),
    )


def _tensor_diff(step: Step, figures: Sequence[float]) -> TensorDiff:
    changed, squares, norm, largest = figures
    return TensorDiff(
        name=step.name,
        num_elements=step.num_elements,
        changed=changed / step.num_elements if step.num_elements else 0.0,
        relative_norm=sqrt(squares / norm) if norm else (float("inf") if squares else 0.0),
        largest=largest,
    )


def changed_tensors(tuned: Source, base: Source) -> frozenset[str]:
    """Return the names of tuned tensors that are not the base's bit for bit, or that the base lacks.

    Raises:
        CurvatureError: None differs.
    """
    pairs, _ = _pairs(base, tuned)
    changing = [(ours, theirs) for ours, theirs in pairs if ours is not theirs]  # an adapter leaves most alone
    found = look(pair_plan(base, tuned, changing, Differs()), _backend())
    same = {theirs.name for ours, theirs in pairs if not found.get(ours.name, False)}
    changed = frozenset(tuned.tensors) - same
    if not changed:
        raise CurvatureError(f"no tensor of `{tuned.ref}` differs from `{base.ref}`, so there is nothing to measure")
    return changed


def changed_outputs(plan: Plan) -> frozenset[str]:
    """Return the output names of the tensors that a plan fuses and of which some tuned model differs from the base.

    Raises:
        CurvatureError: None differs.
    """
    found = look(plan.with_method(Differs()), _backend())
    changed = frozenset(name for name, differs in found.items() if differs)
    if not changed:
        tuned = " and ".join(f"`{checkpoint.ref}`" for checkpoint in plan.tuned)
        raise CurvatureError(f"no tensor of {tuned} differs from `{plan.base.ref}`, so there is nothing to measure")
    return changed
