"""Tables in letters that fit the terminal: a bar goes first, then other columns; a name is shortened in its middle."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

GAP = "  "
LEAST_WRAPPED = 20  # cells of a column of text


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What of a table is shown.

    Attributes:
        places: Of the columns.
        widths: Theirs.
    """

    places: tuple[int, ...]
    widths: tuple[int, ...]


def shortened(text: str, width: int) -> str:
    """Return a text of at most `width` cells: of what is too long the middle is left out."""
    if cell_len(text) <= width:
        return text
    first = (width - 1) // 2
    return f"{text[: width - 1 - first]}…{text[len(text) - first :]}" if width > 1 else "…"[:width]


def fitted(widths: Sequence[int], width: int | None, *, bar: int | None, text: int | None) -> Fitted:
    """Return which columns there is room for, and how wide they are.

    Args:
        widths: What each would take.
        width: What there is; None is any.
        bar: The column that says nothing that others do not.
        text: The column that may run over several lines.
    """
    own, places = list(widths), list(range(len(widths)))

    def taken() -> int:
        return sum(own[k] for k in places) + len(GAP) * (len(places) - 1)

    def over() -> int:
        return 0 if width is None else max(0, taken() - width)

    if over() and bar in places:
        places.remove(bar)
    if over() and text in places:
        own[text] = max(LEAST_WRAPPED, own[text] - over())
    while over() and len(places) > 2:
        places.pop()
        if text in places:
            own[text] = widths[text]
            own[text] = max(LEAST_WRAPPED, own[text] - over())
    own[0] = max(1, own[0] - over())
    return Fitted(places=tuple(places), widths=tuple(own[k] for k in places))


def _padded(cell: str, width: int, *, right: bool) -> str:
    space = " " * max(0, width - cell_len(cell))
    return space + cell if right else cell + space


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, *, bar: int | None, text: int | None
) -> list[str]:
    """Return the heads and the rows as lines; the first column is a name, the others are figures but for `text`."""
    every = [columns, *rows]
    layout = fitted(
        [max(cell_len(row[k]) for row in every) for k in range(len(columns))], width, bar=bar, text=text
    )  # fmt: skip
    lines = []
    for row in every:
        cells = []
        for place, own in zip(layout.places, layout.widths, strict=True):
            cell = row[place]
            cells.append(textwrap.wrap(cell, own) or [""] if place == text else [shortened(cell, own)])
        for k in range(max(map(len, cells))):
            parts = [
                _padded(cell[k] if k < len(cell) else "", own, right=place not in (0, bar, text))
                for cell, place, own in zip(cells, layout.places, layout.widths, strict=True)
            ]
            lines.append(GAP.join(parts).rstrip())
    return lines
