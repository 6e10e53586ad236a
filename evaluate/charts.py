"""Charts of a sweep: in letters for a terminal, and as PNG or SVG like Fig. 3 and 4 of the AdaDARE-γ paper."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..fusion.errors import ModelError
from ..fusion.picture import draw_into, new_figure
from .points import Spot, Sweep


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One place of a curve.

    Attributes:
        at: Strength, or the drop rate that was asked for.
        value: Mean over the seeds.
        deviation: Over the seeds; 0 of one.
        realised: The share of deltas that was dropped.
    """

    at: float
    value: float
    deviation: float = 0.0
    realised: float = 0.0


Series = Mapping[str, Sequence[Mark]]
Pairs = Mapping[str, Sequence[tuple[float, float]]]
WIDTH, HEIGHT, LEAST_WIDTH = 64, 14, 24
MARKS = "●○◆◇■□▲△*+x"
POINTS = "osD^vPX<>*hp"
DASHES = ("-", "--", "-.", ":")
STRENGTH, DROP_RATE = "strength γ or λ", "drop rate p, best strength"
VISIBLE = 0.005  # of a drop rate, from where what was realised is drawn beside what was asked for
TITLES = {"target": "target", "pretrained": "general (pre-trained)", "h-score": "H-score", "avg": "Avg"}


def terminal_chart(series: Pairs, *, x: str, room: int | None = None, height: int = HEIGHT) -> str:
    """Return points as marks on a grid of letters, with a legend; later series lie on top.

    Args:
        room: How wide the chart may be with its labels.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    (left, right), (low, high) = _range([p[0] for p in points]), _range([p[1] for p in points])
    labels = {0: f"{high:.1f}", height - 1: f"{low:.1f}"}
    gutter = max(map(len, labels.values()))
    width = max(LEAST_WIDTH, min(WIDTH, (room or 2 * WIDTH) - gutter - 2))
    grid = [[" "] * width for _ in range(height)]
    for mark, line in zip(MARKS * (1 + len(series) // len(MARKS)), series.values(), strict=False):
        for at, value in line:
            row = round((value - low) / (high - low) * (height - 1))
            grid[height - 1 - row][round((at - left) / (right - left) * (width - 1))] = mark
    lines = [f"{labels.get(k, ''):>{gutter}} │{''.join(row)}" for k, row in enumerate(grid)]
    lines.append(" " * gutter + " └" + "─" * width)
    lines.append(" " * (gutter + 2) + f"{left:<8.3g}{x:^{width - 16}}{right:>8.3g}")
    marks = zip(MARKS * (1 + len(series) // len(MARKS)), series, strict=False)
    return "\n".join([*lines, *(f"{' ' * (gutter + 2)}{mark} {name}" for mark, name in marks)])


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def pairs_of(series: Series) -> dict[str, list[tuple[float, float]]]:
    """Return the places alone, as a terminal shows them."""
    return {label: [(mark.at, mark.value) for mark in line] for label, line in series.items()}


def _mark(at: float, spot: Spot, measure: str) -> Mark:
    return Mark(at=at, value=spot.measures[measure], deviation=spot.deviation(measure), realised=spot.realised_sparsity)


def by_strength(sweep: Sweep, measure: str) -> dict[str, list[Mark]]:
    """Return a measure against the strength, one series a curve."""
    found: dict[str, list[Mark]] = {}
    for spot in sweep.spots:
        found.setdefault(spot.first.label, []).append(_mark(spot.first.strength, spot, measure))
    return {label: sorted(line, key=lambda mark: mark.at) for label, line in found.items()}


def by_sparsity(sweep: Sweep, measure: str, chosen_by: str | None = None) -> dict[str, list[Mark]]:
    """Return a measure against the drop rate: of each family the best strength at each sparsity.

    Args:
        chosen_by: The measure that says which is best. Default: the one that is shown.
    """
    best: dict[tuple[str, float], Spot] = {}
    for spot in sweep.spots:
        point, by = spot.first, chosen_by or measure
        if point.sparsity is None or point.blocks is not None:
            continue
        key = point.family, point.sparsity
        if key not in best or best[key].measures[by] < spot.measures[by]:
            best[key] = spot
    found: dict[str, list[Mark]] = {}
    for (family, sparsity), spot in sorted(best.items()):
        found.setdefault(family, []).append(_mark(sparsity, spot, measure))
    return {family: line for family, line in found.items() if len(line) > 1}


def shown_measures(sweep: Sweep) -> list[str]:
    """Return what is worth a panel: the two sides and the H-score, or the one side that there is."""
    known = sweep.points[0].scores.measures
    return [name for name in ("target", "pretrained", "h-score") if name in known]


def as_image(sweep: Sweep) -> str:
    """Return the charts as an element of HTML; nothing where matplotlib is not installed."""
    picture = io.BytesIO()
    try:
        draw(sweep, [picture])
    except ModelError:
        return ""
    data = base64.b64encode(picture.getvalue()).decode("ascii")
    return f'<img alt="scores against strength" src="data:image/png;base64,{data}">'


def draw(sweep: Sweep, files: Sequence[Path | IO[bytes]]) -> None:
    """Write the charts as PNG, SVG or PDF: each measure against the strength, and against the drop rate.

    A row of panels whose curves would be single points is left out.

    Raises:
        ModelError: matplotlib is not installed.
    """
    measures = shown_measures(sweep)
    rows: list[tuple[str, dict[str, dict[str, list[Mark]]]]] = []
    strengths = {name: by_strength(sweep, name) for name in measures}
    if any(len(line) > 1 for line in strengths[measures[0]].values()):
        rows.append((STRENGTH, strengths))
    rates = {name: by_sparsity(sweep, name, measures[-1]) for name in measures}
    if rates[measures[0]]:
        rows.append((DROP_RATE, rates))
    rows = rows or [(STRENGTH, strengths)]  # one point alone
    legend = max(len(series) for _, panels in rows for series in panels.values()) + 4
    height = 3.2 * len(rows) + 0.2 * -(-legend // len(measures))
    figure = new_figure(4.2 * len(measures), height, hint="the CSV has the figures")
    handles: dict[str, Any] = {}
    for row, (x, panels) in enumerate(rows):
        for column, (measure, series) in enumerate(panels.items()):
            axes = figure.add_subplot(len(rows), len(measures), row * len(measures) + column + 1)
            _lines(axes, series, x)
            for name, style in (("base", ":"), ("tuned", "--")):
                axes.axhline(sweep.references[name][measure], color="0.5", linestyle=style, linewidth=1, label=name)
            axes.set_title(TITLES[measure])
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(measures), fontsize="small")
    for file in files:
        draw_into(figure, file)


def _lines(axes: Any, series: Series, x: str) -> None:
    """Draw curves that differ in colour, mark and dashes, so that any number of them can be told apart."""
    for number, (label, line) in enumerate(series.items()):
        kind = {"marker": POINTS[number % len(POINTS)], "color": f"C{number % 10}", "markersize": 4}
        at, values = [mark.at for mark in line], [mark.value for mark in line]
        dashes = DASHES[number // 10 % len(DASHES)]
        spread = [mark.deviation for mark in line] if any(mark.deviation for mark in line) else None
        axes.errorbar(at, values, yerr=spread, linestyle=dashes, capsize=2, label=label, **kind)
        if x == DROP_RATE and any(abs(mark.realised - mark.at) > VISIBLE for mark in line):
            realised = [mark.realised for mark in line]
            axes.plot(realised, values, linestyle="", mfc="none", label=f"{label}, realised rate", **kind)
    marks = [mark for line in series.values() for mark in line]
    rates = [rate for mark in marks for rate in (mark.at, mark.realised)]
    if x == DROP_RATE and max(rates) >= 0.9 and min(rates) > 0 and max(rates) < 1:
        axes.set_xscale("logit")
        axes.set_xticks(sorted({mark.at for mark in marks}))
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(lambda rate, _place: f"{rate:g}")
    axes.set_xlabel(x)
    axes.grid(alpha=0.3)
