"""The densities of an adapter as a picture: a letter chart's series, and a PNG like Fig. 5 of LoRASculpt."""

from __future__ import annotations

import re
from pathlib import Path

from ..picture import new_figure, write_picture
from .density import AdapterDensity, LayerDensity


def place_of(name: str) -> tuple[int, str]:
    """Return which block a module lies in, and its kind: its name without the block's number."""
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
    return (int(numbers[0]) if numbers else 0), name.rpartition(".")[2]


def by_kind(density: AdapterDensity) -> dict[str, list[tuple[int, LayerDensity]]]:
    """Return the modules of each kind, in the order of their blocks."""
    found: dict[str, list[tuple[int, LayerDensity]]] = {}
    for layer in density.layers:
        block, kind = place_of(layer.name)
        found.setdefault(kind, []).append((block, layer))
    return {kind: sorted(members, key=lambda member: member[0]) for kind, members in found.items()}


def series_of(density: AdapterDensity) -> dict[str, list[tuple[float, float]]]:
    """Return the density of B·A in percent against the block, a line for each kind, and what is expected."""
    members = [member for line in by_kind(density).values() for member in line]
    found: dict[str, list[tuple[float, float]]] = {
        "expected": [(block, 100 * layer.expected) for block, layer in members]
    }
    for kind, line in by_kind(density).items():
        found[kind] = [(block, 100 * layer.density) for block, layer in line]
    return found


def draw_density(density: AdapterDensity, file: Path, *, overwrite: bool = False) -> None:
    """Write the picture: each kind's B·A with its expectation and bound, and the factors below.

    Raises:
        ModelError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    kinds = by_kind(density)
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = new_figure(3.2 * columns + 0.6, 2.6 * rows + 0.8)
    from matplotlib.ticker import MaxNLocator

    for place, (kind, line) in enumerate(kinds.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        blocks = [block for block, _ in line]
        expected = [100 * layer.expected for _, layer in line]
        low = [100 * max(0.0, layer.expected - layer.bound) for _, layer in line]
        high = [100 * min(1.0, layer.expected + layer.bound) for _, layer in line]
        axes.fill_between(blocks, low, high, color="0.85", label="bound")
        axes.plot(blocks, expected, color="0.4", linestyle="--", label="expected")
        axes.plot(blocks, [100 * layer.density for _, layer in line], marker="o", markersize=3, label="B·A")
        for name, style in (("density_a", ":"), ("density_b", "-.")):
            label = name[-1].upper()
            axes.plot(blocks, [100 * getattr(layer, name) for _, layer in line], linestyle=style, label=label)
        axes.set_title(kind, fontsize="medium")
        # A bound far beyond what was counted, as small matrices have it, is cut off.
        counted = [getattr(layer, n) for _, layer in line for n in ("density", "expected", "density_a", "density_b")]
        axes.set_ylim(0, 130 * max(*counted, 1e-6))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if place >= len(kinds) - columns:
            axes.set_xlabel("block")
        if place == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    figure.supylabel("non-zeros in %", fontsize="medium")
    write_picture(figure, file, made_by="lora-density", overwrite=overwrite)
