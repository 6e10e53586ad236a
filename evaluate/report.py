"""One self-contained HTML page about a fused model: what was done to each layer, bounds, scores, provenance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..fusion.checkpoint.reader import read_json
from ..fusion.errors import DataError
from ..fusion.manifest import Manifest
from ..fusion.methods import METHODS
from ..fusion.names import block_of, kind_of, natural_key
from ..fusion.records import TensorRecord

TEMPLATE = "report.html.j2"


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
        value=lambda record: (record.delta_l1 or 0.0) / record.num_fused,
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
    """Return the maps of each stack of numbered layers; tensors outside of such are in the page's table."""
    stacks: dict[str, dict[tuple[str, str], TensorRecord]] = {}
    for record in records:
        block = block_of(record.name)
        stack, _, number = block.rpartition(".")
        if number.isdigit() and record.num_fused:
            stacks.setdefault(stack, {})[number, kind_of(record.name)] = record
    return [
        _heat_map(stack, stacks[stack], measure) for stack in sorted(stacks, key=natural_key) for measure in MEASURES
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


@dataclass(frozen=True, kw_only=True)
class BlockRow:
    """A block in the table of distances and bounds; None where the fuse recorded no such figure."""

    name: str
    num_elements: int
    sparsity: float
    delta_l1: float
    distance_l1: float
    distance_l2: float
    gamma: tuple[float, float] | None
    gamma_bound: float | None


def block_rows(records: Sequence[TensorRecord]) -> list[BlockRow]:
    """Return figures of each block, layers in their order."""
    blocks: dict[str, list[TensorRecord]] = {}
    for record in records:
        if record.num_fused:
            blocks.setdefault(block_of(record.name), []).append(record)
    return [_block_row(name, blocks[name]) for name in sorted(blocks, key=natural_key)]


def _block_row(name: str, records: Sequence[TensorRecord]) -> BlockRow:
    elements = sum(record.num_fused for record in records)
    gammas = [r.figures["gamma"] for r in records if "gamma" in r.figures]
    bounds = [r.figures["gamma_bound"] for r in records if "gamma_bound" in r.figures]
    return BlockRow(
        name=name,
        num_elements=elements,
        sparsity=1 - sum(record.kept or 0 for record in records) / elements,
        delta_l1=sum(record.delta_l1 or 0.0 for record in records),
        distance_l1=sum(record.distance_l1 or 0.0 for record in records),
        distance_l2=math.sqrt(sum((record.distance_l2 or 0.0) ** 2 for record in records)),
        gamma=(min(gammas), max(gammas)) if gammas else None,
        gamma_bound=min(bounds) if bounds else None,
    )


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of one or several models: a row a measure, a column a model."""

    models: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def score_table(files: Iterable[Path]) -> ScoreTable | None:
    """Return what `sculpt eval --json` printed into files, side by side.

    Raises:
        DataError: A file is none of these.
    """
    columns: dict[str, Mapping[str, float]] = {}
    for file in files:
        content = read_json(file)
        measures = content.get("measures") if isinstance(content, dict) else None
        if not isinstance(measures, dict) or not all(isinstance(value, (int, float)) for value in measures.values()):
            raise DataError(
                f"`{file}` holds no scores", hint="`sculpt eval MODEL --suite suite.yaml --json` prints them"
            )
        columns[str(content.get("model", file.stem))] = measures
    if not columns:
        return None
    names = dict.fromkeys(name for measures in columns.values() for name in measures)
    return ScoreTable(
        models=tuple(columns),
        rows=tuple((name, tuple(measures.get(name) for measures in columns.values())) for name in names),
    )


def make_report(fused: Path | str, *, scores: Sequence[Path] = ()) -> str:
    """Return the page of a fused model; nothing in it is fetched from elsewhere.

    Raises:
        CheckpointError: The folder holds no manifest.
        DataError: A file of scores is none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    folder = Path(fused)
    manifest = Manifest.read(folder)
    environment = Environment(
        loader=PackageLoader("sculpt.evaluate", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["figure"] = _figure
    environment.filters["breakable"] = lambda name: Markup("<wbr>").join(map(escape, re.split(r"(?<=[._])", name)))
    method = METHODS.get(manifest.method)
    return environment.get_template(TEMPLATE).render(
        name=folder.resolve().name,
        manifest=manifest,
        title=method.title if method else manifest.method,
        source=method.source if method else "",
        summary=_totals(manifest),
        maps=heat_maps(manifest.fused),
        blocks=block_rows(manifest.fused),
        scores=score_table(scores),
        curvature=_flat(manifest.curvature or {}),
        settings=_flat(manifest.settings),
    )


def _totals(manifest: Manifest) -> list[tuple[str, str]]:
    fused = manifest.fused
    closed = sum(record.figures.get("expected_loss_closed_form", 0.0) for record in fused)
    exact = sum(record.figures.get("expected_loss_exact", 0.0) for record in fused)
    found = [
        ("tensors fused", f"{len(fused)} of {len(manifest.tensors)}"),
        ("parameters fused", f"{sum(record.num_fused for record in fused):,}"),
        ("deltas that are zero", f"{manifest.realised_sparsity():.2%}"),
        ("L1 norm of the fine-tune", _figure(sum(record.delta_l1 or 0.0 for record in fused))),
        ("L1 distance to the base", _figure(sum(record.distance_l1 or 0.0 for record in fused))),
    ]
    if closed and manifest.options.get("scope") == "tensor":
        found.append(("expected loss, closed form", _figure(closed)))
        found.append(("expected loss, exact", _figure(exact)))
    return found


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a mapping as lines, what is nested as JSON; what is empty is left out."""
    return [
        (key.replace("_", " "), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in sorted(content.items())
        if value not in (None, "", [], {}, ())
    ]
