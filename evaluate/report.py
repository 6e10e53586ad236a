"""One self-contained HTML page about a fused model: what was done to each layer, bounds, scores, provenance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..fusion.checkpoint.output.guard import Kind, refuse_output
from ..fusion.checkpoint.output.workspace import write_file
from ..fusion.methods import METHODS
from ..fusion.methods.named import options_told
from ..fusion.names import block_of, natural_key
from ..fusion.record.manifest import Manifest
from ..fusion.record.records import TensorRecord
from .heat_map import heat_maps
from .scored import read_scores, score_table
from .verdict import verdict

if TYPE_CHECKING:
    from .scored import Scores
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


def report(
    fused: PathLike[str] | str,
    *,
    output: Path | str | None = None,
    scores: Sequence[Scores] = (),
    overwrite: bool = False,
) -> Path:
    """Write one HTML page about a fused model, which needs no network; return where it is.

    Args:
        fused: A checkpoint that sculpt wrote.
        output: Default: `<fused>-report.html`, beside it.
        scores: What `evaluate`, `gate` and `sweep` returned, or files of it.

    Raises:
        CheckpointError: The folder holds no manifest.
        DataError: A file holds no scores.
        OutputError: `output` exists, and `overwrite` is not set.
    """
    folder = Path(fused).resolve()
    page = folder.with_name(f"{folder.name}-report.html") if output is None else Path(output)
    files = [Path(one) for one in scores if isinstance(one, (str, Path))]
    refuse_output(page, [folder, *files], PAGE, overwrite=overwrite)
    text = make_report(folder, scores=scores)
    write_file(
        page,
        lambda file: file.write_text(text, encoding="utf-8"),
        made_by="report",
        may_replace=PAGE.may_replace if overwrite else None,
    )
    return page


def make_report(fused: Path | str, *, scores: Sequence[Scores] = ()) -> str:
    """Return the page of a fused model; nothing in it is fetched from elsewhere.

    Raises:
        CheckpointError: The folder holds no manifest.
        DataError: A file holds no scores.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    folder, scored = Path(fused), read_scores(scores)
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
        verdict=verdict(manifest, folder.resolve().name, scored),
        summary=[(name, figure) for name, figure in manifest.table().rows if name != "models"],
        options=options_told(manifest.options),
        maps=heat_maps(manifest.fused),
        blocks=block_rows(manifest.fused),
        scores=score_table(scored),
        curvature=_flat(manifest.curvature or {}),
        settings=_flat(manifest.settings),
    )


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
