"""Draw the pictures of README, readable on light and on dark pages: answers of a real run, and a table as a chart.

    sculpt repair base/ tuned/ --data train.jsonl      # of benchmarks/forgetting: tagging, all weights, seed 0
    sculpt compare base/ tuned/ tuned-repaired/ --prompts prompts.jsonl --max-new-tokens 24 --json > answers.json
    python benchmarks/pictures.py answers.json

The answers that are shown are kept in forgetting/answers.json, the default; the chart is of the table in
docs/protecting-the-base.md.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
STYLE = """<style>
text { font: 14px ui-monospace, "SF Mono", Menlo, Consolas, monospace; fill: #1f2328; }
.name { fill: #59636e; } .bad { fill: #b42318; } .good { fill: #0f766e; } .head { font-weight: 600; }
.axis { font-family: system-ui, sans-serif; font-size: 13px; fill: #59636e; } .line { stroke: #d1d9e0; }
.card { fill: #f6f8fa; stroke: #d1d9e0; } .dot { fill: #57606a; } .ours { fill: #0f766e; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .name, .axis { fill: #9198a1; } .bad { fill: #ff8a80; } .good { fill: #4fd1b5; }
.line { stroke: #3d444d; } .card { fill: #151b23; stroke: #3d444d; } .dot { fill: #9198a1; } .ours { fill: #4fd1b5; } }
</style>"""
WIDTH, LINE, LEFT, COLUMNS = 860, 20, 120, 84
CLASSES = ("", "bad", "good")
# Of the table, what is drawn, and as what.
NAMES = {
    "base": "base",
    "fine-tune": "fine-tune",
    "interpolation": "interpolation",
    "TIES, density 0.1": "TIES",
    "AdaDARE-γ, exact, 0.9": "AdaDARE-γ",
    "two-sided": "sculpt repair",
}


def svg(width: int, height: int, parts: list[str]) -> str:
    """Return a picture."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, STYLE, *parts, "</svg>\n"])


def wrapped(text: str) -> list[str]:
    """Return the lines of an answer; a break that it wrote is shown as ↵."""
    return textwrap.wrap(" ↵ ".join(line for line in text.split("\n") if line.strip()), COLUMNS) or [""]


def before_after(answers: dict) -> str:
    """Return prompts with the answers of every model below."""
    parts, y = [], 16
    for asked in answers["asked"]:
        rows = zip(answers["models"], asked["answers"], CLASSES, strict=True)
        lines = [(name, wrapped(text), kind) for name, text, kind in rows]
        prompt = wrapped(asked["prompt"])
        height = LINE * (len(prompt) + sum(len(found) for _, found, _ in lines)) + 26
        parts.append(f'<rect class="card" x="1" y="{y}" width="{WIDTH - 2}" height="{height}" rx="8"/>')
        at = y + 24
        for line in prompt:
            parts.append(f'<text class="head" x="16" y="{at}">{escape(line)}</text>')
            at += LINE
        for name, found, kind in lines:
            parts.append(f'<text class="name" x="16" y="{at + 3}">{name}</text>')
            for line in found:
                parts.append(f'<text class="{kind}" x="{LEFT}" y="{at + 3}">{escape(line)}</text>')
                at += LINE
        y += height + 12
    return svg(WIDTH, y, parts)


def table() -> Iterator[tuple[str, float, float]]:
    """Yield method, target and accuracy of general text, of the first table of scores."""
    page = (DOCS / "protecting-the-base.md").read_text(encoding="utf-8")
    body = page.split("| tagging | strength | target |")[1].split("\n\n")[0]
    for line in body.splitlines()[2:]:
        name, _, target, _, _, general, *_ = (cell.strip(" *") for cell in line.strip("|").split("|"))
        if name in NAMES:
            yield NAMES[name], *(float(re.split(r"[ ±]", cell)[0]) for cell in (target, general))


def target_general() -> str:
    """Return a chart: a method a dot, the better the further to the right and to the top."""
    width, height, left, bottom = 620, 330, 60, 52
    rows = list(table())
    x0, x1, y0, y1 = 0.0, 48.0, 32.0, 44.0

    def place(target: float, general: float) -> tuple[float, float]:
        return (
            left + (target - x0) / (x1 - x0) * (width - left - 20),
            20 + (y1 - general) / (y1 - y0) * (height - bottom - 20),
        )

    parts = []
    for general in range(32, 45, 4):
        y = place(0, general)[1]
        parts += [f'<line class="line" x1="{left}" x2="{width - 20}" y1="{y:.0f}" y2="{y:.0f}"/>']
        parts += [f'<text class="axis" x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{general}</text>']
    for target in range(0, 49, 12):
        x = place(target, y0)[0]
        parts.append(f'<text class="axis" x="{x:.0f}" y="{height - bottom + 20}" text-anchor="middle">{target}</text>')
    parts.append(f'<text class="axis" x="{width / 2}" y="{height - 8}" text-anchor="middle">the task: % of tags</text>')
    parts.append(
        f'<text class="axis" transform="translate(16 {height / 2 - 20}) rotate(-90)" text-anchor="middle">'
        "general text: % of tokens</text>"
    )
    for name, target, general in rows:
        x, y = place(target, general)
        ours = name == "sculpt repair"
        right = x > width - 130 or ours
        parts.append(f'<circle class="{"ours" if ours else "dot"}" cx="{x:.1f}" cy="{y:.1f}" r="{7 if ours else 5}"/>')
        parts.append(
            f'<text class="axis{" good head" if ours else ""}" x="{x + (-11 if right else 11):.1f}" y="{y + 4:.1f}"'
            f' text-anchor="{"end" if right else "start"}">{name}</text>'
        )
    return svg(width, height, parts)


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "forgetting/answers.json"
    (DOCS / "before-after.svg").write_text(before_after(json.loads(file.read_text(encoding="utf-8"))), encoding="utf-8")
    (DOCS / "target-general.svg").write_text(target_general(), encoding="utf-8")
