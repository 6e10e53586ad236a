"""Charts of a sweep: in letters for a terminal, and as PNG or SVG like Fig. 3 and 4 of the AdaDARE-γ paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..fusion.errors import ModelError
from .points import Point, Sweep

Series = Mapping[str, Sequence[tuple[float, float]]]
WIDTH, HEIGHT = 64, 14
MARKS = "●○◆◇■□▲△*+x"
TITLES = {"target": "target", "pretrained": "general (pre-trained)", "h-score": "H-score", "avg": "Avg"}


def terminal_chart(series: Series, *, x: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    """Return points as marks on a grid of letters, with a legend; later series lie on top."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    (left, right), (low, high) = _range([p[0] for p in points]), _range([p[1] for p in points])
    grid = [[" "] * width for _ in range(height)]
    for mark, line in zip(MARKS * (1 + len(series) // len(MARKS)), series.values(), strict=False):
        for at, value in line:
            row = round((value - low) / (high - low) * (height - 1))
            grid[height - 1 - row][round((at - left) / (right - left) * (width - 1))] = mark
    labels = {0: f"{high:.1f}", height - 1: f"{low:.1f}"}
    gutter = max(map(len, labels.values()))
    lines = [f"{labels.get(k, ''):>{gutter}} │{''.join(row)}" for k, row in enumerate(grid)]
    lines.append(" " * gutter + " └" + "─" * width)
    lines.append(" " * (gutter + 2) + f"{left:<8.3g}{x:^{width - 16}}{right:>8.3g}")
    marks = zip(MARKS * (1 + len(series) // len(MARKS)), series, strict=False)
    return "\n".join([*lines, *(f"{' ' * (gutter + 2)}{mark} {name}" for mark, name in marks)])


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def by_strength(sweep: Sweep, measure: str) -> dict[str, list[tuple[float, float]]]:
    """Return a measure against the strength, one series a curve."""
    found: dict[str, list[tuple[float, float]]] = {}
    for point in sweep.tried:
        found.setdefault(point.label, []).append((point.strength, point.scores.measures[measure]))
    return {label: sorted(line) for label, line in found.items()}


def by_sparsity(sweep: Sweep, measure: str) -> dict[str, list[tuple[float, float]]]:
    """Return a measure against the drop rate: of each family the best strength at each sparsity."""
    best: dict[tuple[str, float], Point] = {}
    for point in sweep.tried:
        if point.sparsity is None or point.blocks is not None:
            continue
        key = point.family, point.sparsity
        if key not in best or best[key].scores.measures[measure] < point.scores.measures[measure]:
            best[key] = point
    found: dict[str, list[tuple[float, float]]] = {}
    for (family, sparsity), point in sorted(best.items()):
        found.setdefault(family, []).append((sparsity, point.scores.measures[measure]))
    return {family: line for family, line in found.items() if len(line) > 1}


def shown_measures(sweep: Sweep) -> list[str]:
    """Return the measures that the charts show: target, general and H-score, as far as the suite has them."""
    return [name for name in ("target", "pretrained", "h-score") if name in sweep.points[0].scores.measures]


def draw(sweep: Sweep, files: Sequence[Path]) -> None:
    """Write the charts; the suffix of each file says its format.

    Raises:
        ModelError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError(
            "charts as files need matplotlib", hint="`pip install 'checkpoint-sculpt[plots]'`; the CSV has the figures"
        ) from error
    measures = shown_measures(sweep)
    drop_rates = by_sparsity(sweep, measures[-1])
    columns = len(measures) + bool(drop_rates)
    lines = len(by_strength(sweep, measures[0])) + 2
    figure: Any = Figure(figsize=(4.2 * columns, 3.4 + 0.2 * -(-lines // columns)), layout="constrained")
    for place, measure in enumerate(measures):
        axes = figure.add_subplot(1, columns, place + 1)
        _lines(axes, by_strength(sweep, measure), "strength γ or λ", TITLES[measure])
        for name, style in (("base", ":"), ("tuned", "--")):
            axes.axhline(sweep.references[name][measure], color="0.5", linestyle=style, linewidth=1, label=name)
        if place == 0:
            figure.legend(
                *axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize="small"
            )
    if drop_rates:
        axes = figure.add_subplot(1, columns, columns)
        _lines(axes, drop_rates, "drop rate p, best strength", TITLES[measures[-1]])
        axes.legend(fontsize="x-small")
    for file in files:
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)


def _lines(axes: Any, series: Series, x: str, title: str) -> None:
    for label, line in series.items():
        axes.plot([at for at, _ in line], [value for _, value in line], marker="o", markersize=3, label=label)
    axes.set_xlabel(x)
    axes.set_title(title)
    axes.grid(alpha=0.3)
