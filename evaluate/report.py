"""One self-contained HTML page about a fused model: what was done to each layer, bounds, scores, provenance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..fusion.checkpoint.json_file import read_json
from ..fusion.checkpoint.output.guard import Kind
from ..fusion.errors import DataError
from ..fusion.methods import METHODS
from ..fusion.names import block_of, natural_key
from ..fusion.record.manifest import Manifest
from ..fusion.record.records import TensorRecord
from .heat_map import heat_maps

TEMPLATE = "report.html.j2"
GENERATOR = b'<meta name="generator" content="sculpt'


def _is_page(file: Path) -> bool:
    with file.open("rb") as stream:
        return GENERATOR in stream.read(1000)


PAGE = Kind(name="report", is_folder=False, is_ours=_is_page)


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
        delta_l1=sum(record.fine_tuned_l1 or 0.0 for record in records),
        distance_l1=sum(record.distance_l1 or 0.0 for record in records),
        distance_l2=math.hypot(*(record.distance_l2 or 0.0 for record in records)),
        gamma=(min(gammas), max(gammas)) if gammas else None,
        gamma_bound=min(bounds) if bounds else None,
    )


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of one or several models: a row a measure, a column a model."""

    models: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def score_table(files: Iterable[Path]) -> ScoreTable | None:
    """Return the scores in what `eval`, `gate` or `sweep` wrote, side by side.

    Raises:
        DataError: A file is something else.
    """
    columns: dict[str, Mapping[str, float]] = {}
    for file in files:
        found = dict(_scores_in(read_json(file), file))
        if not found:
            raise DataError(
                f"`{file}` holds no scores",
                hint="`sculpt eval MODEL --suite suite.yaml --json` prints them; a gate's and a sweep's JSON have them",
            )
        columns |= found
    if not columns:
        return None
    names = dict.fromkeys(name for measures in columns.values() for name in measures)
    return ScoreTable(
        models=tuple(columns),
        rows=tuple((name, tuple(measures.get(name) for measures in columns.values())) for name in names),
    )


def _scores_in(content: Any, file: Path) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield models and their measures: of one, of several, of a gate, or of a sweep its ends and what it picked."""
    if not isinstance(content, dict):
        return
    if "points" in content:
        for point in content["points"]:
            if point["family"] in ("base", "tuned"):
                yield point["family"], point["measures"]
        if "picked" in content:
            yield "fused", content["picked"]["measures"]
        return
    for model in content.get("models", ()):
        yield from _scores_in(model, file)
    if "limits" in content:
        for name in ("base", "tuned", "model"):
            if isinstance(content.get(name), dict):
                yield ("fused" if name == "model" else name), content[name]["measures"]
        return
    measures = content.get("measures")
    if isinstance(measures, dict) and all(isinstance(value, (int, float)) for value in measures.values()):
        yield str(content.get("model", file.stem)), measures


def make_report(fused: Path | str, *, scores: Sequence[Path] = ()) -> str:
    """Return the page of a fused model; nothing in it is fetched from elsewhere.

    Raises:
        CheckpointError: The folder holds no manifest.
        DataError: A file holds no scores.
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
        title=manifest.title,
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
        ("… as fine-tuning never changed them", f"{manifest.unchanged():.2%}"),
        ("L1 norm of the fine-tune", _figure(sum(record.fine_tuned_l1 or 0.0 for record in fused))),
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
