"""Heat maps of a fused model: a figure of each tensor, layers down, kinds across."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..fusion.names import block_of, is_number, kind_of, natural_key
from ..fusion.record.records import TensorRecord


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One tensor in a heat map.

    Attributes:
        text: What is written in it.
        shade: Of its colour, in [0, 1].
        title: What it tells when pointed at.
    """

    text: str
    shade: float
    title: str


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A figure of every tensor in a stack of layers: a row a layer, a column a kind.

    Attributes:
        low, high: What the palest and the darkest colour stand for.
        rows: Layer number, and a cell or None for each kind.
    """

    title: str
    stack: str
    kinds: tuple[str, ...]
    low: str
    high: str
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a heat map shows of a record; `log` spreads orders of magnitude evenly over the colours."""

    title: str
    value: Callable[[TensorRecord], float]
    show: Callable[[float], str]
    log: bool = False

    def scaled(self, record: TensorRecord) -> float:
        """Return the place on the colour scale, before it is fitted to [0, 1]."""
        value = self.value(record)
        return math.log10(max(value, 1e-300)) if self.log else value


MEASURES = (
    Measure(
        title="Realised sparsity: share of deltas that are zero",
        value=lambda record: record.realised_sparsity or 0.0,
        show=lambda value: f"{100 * value:.1f}",
    ),
    Measure(
        title="Size of the fine-tune: mean |δ| of a parameter",
        value=lambda record: (record.fine_tuned_l1 or 0.0) / record.num_fused,
        show=lambda value: f"{value:.1e}".replace("e-0", "e-"),
        log=True,
    ),
    Measure(
        title="What was injected: mean |fused − base| of a parameter",
        value=lambda record: (record.distance_l1 or 0.0) / record.num_fused,
        show=lambda value: f"{value:.1e}".replace("e-0", "e-"),
        log=True,
    ),
)


def heat_maps(records: Sequence[TensorRecord]) -> list[HeatMap]:
    """Return the maps of each stack of numbered layers; other tensors are in the page's table."""
    stacks: dict[str, dict[tuple[str, str], TensorRecord]] = {}
    for record in records:
        block = block_of(record.name)
        stack, _, number = block.rpartition(".")
        if is_number(number) and record.num_fused:
            stacks.setdefault(stack, {})[number, kind_of(record.name)] = record
    dropped = any((record.kept or 0) + (record.zero_deltas or 0) < record.num_fused for record in records)
    measures = MEASURES if dropped else MEASURES[1:]  # of what no method dropped, no share says anything
    return [
        _heat_map(stack, stacks[stack], measure) for stack in sorted(stacks, key=natural_key) for measure in measures
    ]


def _heat_map(stack: str, cells: Mapping[tuple[str, str], TensorRecord], measure: Measure) -> HeatMap:
    values = {
        place: measure.scaled(record) for place, record in cells.items() if measure.value(record) or not measure.log
    }
    low, high = (min(values.values()), max(values.values())) if values else (0.0, 0.0)
    kinds = tuple(dict.fromkeys(kind for _, kind in cells))
    numbers = sorted({number for number, _ in cells}, key=int)

    def cell(number: str, kind: str) -> Cell | None:
        record = cells.get((number, kind))
        if record is None:
            return None
        at = values.get((number, kind), low)
        return Cell(
            text=measure.show(measure.value(record)),
            shade=round((at - low) / (high - low), 3) if high > low else 0.5,
            title=f"{record.name}: {_summary(record)}",
        )

    shown = sorted((measure.value(record) for record in cells.values()), key=float)
    return HeatMap(
        title=measure.title,
        stack=stack,
        kinds=kinds,
        low=measure.show(shown[0]),
        high=measure.show(shown[-1]),
        rows=tuple((number, tuple(cell(number, kind) for kind in kinds)) for number in numbers),
    )


def _summary(record: TensorRecord) -> str:
    return (
        f"{record.num_fused:,} parameters, {100 * (record.realised_sparsity or 0):.2f} % of deltas zero, "
        f"Σ|δ| {record.delta_l1:.4g}, L1 distance to the base {record.distance_l1:.4g}"
    )
