"""Tables for a terminal, a notebook, a paper, a page, a spreadsheet: one table, and how each writes it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .checkpoint.output.guard import Kind, refuse_output
from .checkpoint.output.workspace import write_file
from .errors import DataError
from .ref import Asked

LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
SIGNS = {"±": r"$\pm$", "γ": r"$\gamma$", "λ": r"$\lambda$", "–": "--"}
MEAN_OF_SIDES = "mean of Source and Target"  # the last column of scores from elsewhere
FIRST_COLUMNS = (("method", "strength"), ("setting", "value"))  # of tables whose models were made here


def _is_table(file: Path) -> bool:
    with file.open("rb") as stream:
        lines = stream.read(1 << 16).decode("utf-8", "replace").splitlines()
    head = [line for line in lines if not line.startswith("\\")][:1]  # LaTeX has its columns after two commands
    cells = [cell.strip(" \\") for cell in re.split("[,|&]", "".join(head).strip("|"))]
    return tuple(cells[:2]) in FIRST_COLUMNS or cells[-1] == MEAN_OF_SIDES


TABLE = Kind(name="table", is_folder=False, is_ours=_is_table)


def with_deviation(mean: float, deviation: float) -> str:
    """Return `12.34 ± 0.56`, or the mean alone where nothing deviates."""
    return f"{mean:.2f} ± {deviation:.2f}" if deviation else f"{mean:.2f}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under names of columns; the first column is text, the others are figures.

    Attributes:
        note: A line below it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""

    def html(self) -> str:
        """Return it as HTML, for a notebook."""

        def line(tag: str, cells: Sequence[str]) -> str:
            sides = ["left", *["right"] * (len(cells) - 1)]
            return "".join(
                f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>'
                for side, cell in zip(sides, cells, strict=True)
            )

        head = f"<caption><b>{escape(self.title)}</b></caption>" if self.title else ""
        body = "".join(f"<tr>{line('td', row)}</tr>" for row in self.rows)
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        return f"<table>{head}<thead><tr>{line('th', self.columns)}</tr></thead><tbody>{body}</tbody></table>{note}"

    _repr_html_ = html

    def markdown(self) -> str:
        """Return it as Markdown."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"

        rule = "|---" + "|--:" * (len(self.columns) - 1) + "|\n"
        return line(self.columns) + rule + "".join(map(line, self.rows))

    def latex(self) -> str:
        """Return it as a tabular of booktabs."""

        def cell(text: str) -> str:
            escaped = "".join(LATEX.get(sign, sign) for sign in text)
            return "".join(SIGNS.get(sign, sign) for sign in escaped)

        def line(cells: Sequence[str]) -> str:
            return " & ".join(map(cell, cells)) + r" \\" + "\n"

        head = f"\\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}\n\\toprule\n{line(self.columns)}\\midrule\n"
        return head + "".join(map(line, self.rows)) + "\\bottomrule\n\\end{tabular}\n"

    def csv(self) -> str:
        """Return it as CSV; deviations are in columns of their own."""
        names: list[str] = []
        columns: list[list[str]] = []
        for place, name in enumerate(self.columns):
            pairs = [row[place].partition(" ± ")[::2] for row in self.rows]
            deviates = any(deviation for _, deviation in pairs)
            names += [name, f"{name} deviation"] if deviates else [name]
            columns.append(["" if value == "–" else value for value, _ in pairs])
            columns += [[deviation for _, deviation in pairs]] if deviates else []
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *zip(*columns, strict=True)])
        return text.getvalue()

    def write(self, file: Path, *, overwrite: bool = False) -> None:
        """Write it as the file's name ends: .csv, .md or .tex.

        Raises:
            OutputError: It cannot be written, or something has the name that is not to be replaced.
        """
        text = FORMS[file.suffix](self)
        write_file(
            file,
            lambda path: path.write_text(text, encoding="utf-8"),
            made_by="table",
            may_replace=TABLE.may_replace if overwrite else None,
        )


FORMS = {".csv": Table.csv, ".md": Table.markdown, ".tex": Table.latex}


def refuse_tables(files: Iterable[Path], inputs: Iterable[Asked], *, overwrite: bool) -> None:
    """Raise, before the work that they are to tell of begins, where a table cannot be written under its name.

    Raises:
        DataError: The name ends otherwise than those of tables do.
        OutputError: It is an input, or something has the name that is not to be replaced.
    """
    for file in files:
        if file.suffix not in FORMS:
            raise DataError(
                f"`{file}` is not a kind of table that sculpt writes", hint=f"its name ends in {', '.join(FORMS)}"
            )
        refuse_output(file, inputs, TABLE, overwrite=overwrite)
