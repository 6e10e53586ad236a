"""Draw what `fuse.py --json` measured: seconds and CPU seconds per 10⁹ parameters.

python benchmarks/fuse_chart.py benchmarks/fuse.json docs/fuse-speed.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = {"wall_s_per_billion": "seconds per 10⁹ parameters", "cpu_s_per_billion": "CPU seconds per 10⁹ parameters"}
COLOURS = {"sculpt": "tab:blue", "mergekit": "tab:orange"}
MARKERS = "osD^v"


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Write a chart: a line for each program, a mark for each size of model."""
    names = list(dict.fromkeys(row["what"] for row in rows))
    sizes = sorted({row["size"] for row in rows}, key=lambda size: float(size.rstrip("b")))
    figure: Any = Figure(figsize=(10, 0.4 * len(names) + 1), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (key, title) in zip(axes, PANELS.items(), strict=True):
        for size, marker in zip(sizes, MARKERS, strict=False):
            shown = [row for row in rows if row["size"] == size]
            colours = [COLOURS.get(row["what"].split()[0], "0.4") for row in shown]
            places = [names.index(row["what"]) for row in shown]
            panel.scatter([row[key] for row in shown], places, c=colours, marker=marker, label=f"{size} parameters")
        panel.set_xscale("log")
        panel.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 100], [0.5, 1, 2, 5, 10, 20, 50, 100])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.set_title(title)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    legend = axes[1].legend(loc="upper right")
    for handle in legend.legend_handles:
        handle.set_color("0.4")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
