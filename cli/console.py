"""What people see. stdout has what a command is for: its tables, its answer, or JSON; stderr has notes and progress."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..fusion.places.settings import keep_offline
from .speech import NOTE, Speech, log
from .tables import table_lines

if TYPE_CHECKING:
    from ..fusion.errors import SculptError, Way
    from ..fusion.table import Table

WIDTH_WITHOUT_TERMINAL = 140  # of what rich lays out in a log file
# Control characters, those that turn the direction of text, and halves of characters.
_OTHERS = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
UNSHOWN, UNSHOWN_IN_JSON = re.compile(rf"[\x00-\x1f{_OTHERS}]"), re.compile(f"[{_OTHERS}]")
console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDTH_WITHOUT_TERMINAL)
answers = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def shown(text: str) -> str:
    """Return a text with what a terminal would obey, not show, escaped: names in it are those of others' files."""
    return UNSHOWN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def speaks() -> bool:
    """Return whether this process speaks for all that share a command; all tell of what goes wrong."""
    from ..fusion.launch import launched

    return launched().is_first


def say(text: str) -> None:
    """Print a note for people, of a line or a few, on stderr; `-q` leaves it out."""
    _log(NOTE, text)


def warn(text: str) -> None:
    """Print a warning for people on stderr."""
    _log(logging.WARNING, text)


def _log(level: int, text: str) -> None:
    if speaks():
        log.log(level, "%s", text)


def out(text: str) -> None:
    """Print a line of what a command is for, or a few, on stdout."""
    _print(answers, text)


def _print(to: Console, text: str) -> None:
    if speaks():
        to.print(Text("\n".join(map(shown, text.split("\n")))), soft_wrap=not to.is_terminal)


def print_json(content: Any) -> None:
    """Print data for programs, keys sorted."""
    if not speaks():
        return
    is_utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json_text(content, ascii_only=not is_utf8))


def json_text(content: Any, *, ascii_only: bool = False) -> str:
    """Return data for programs as a text, keys sorted."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=ascii_only)
    return UNSHOWN_IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n"


class _Shown(logging.Handler):
    """Shows what is said, by the library too, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= Speech.threshold and record.levelno < logging.ERROR:  # an error has a form of its own
            text = "\n".join(map(shown, self.format(record).split("\n")))
            text = f"warning: {text}" if record.levelno >= logging.WARNING else text
            console.print(Text(text), soft_wrap=not console.is_terminal)


log.addHandler(_Shown())


def print_error(error: SculptError, *, recipe: bool = False) -> None:
    """Print an expected failure: the sentence, then the hint.

    Args:
        recipe: Whether a recipe was run, which can say what an option can.
    """
    from .options import flag_named, is_shared

    def worded(text: str) -> str:
        # A method's own options are keys of the recipe: `merge` has no flags for them.
        for option in [option for option in error.options if not recipe or is_shared(option)]:
            text = text.replace(f"`{option.rpartition('.')[2]}`", f"`{flag_named(option)}`")
        return shown(" ".join(text.split("\n")))

    console.print(Text.assemble(("error: ", "bold red"), worded(error.message)), soft_wrap=True)
    ways = ", ".join(f"{_way(way, recipe=recipe)} {way.effect}" for way in error.ways)
    hint = "; ".join(filter(None, (worded(error.hint or ""), ways)))
    log.error("%s%s", worded(error.message), hint and f" (hint: {hint})")
    if hint:
        console.print(Text.assemble("\n", ("hint: ", "bold"), hint), soft_wrap=True)


def _way(way: Way, *, recipe: bool) -> str:
    """Return a way out as it is written: a flag, which may be a recipe's key too."""
    from .options import POLICIES, flag_named

    name = flag_named(way.option)
    flag = f"`--no-{name[2:]}`" if way.value == "false" else f"`{' '.join(filter(None, (name, way.value)))}`"
    is_policy = recipe and way.option in {field.name for field, _ in POLICIES.fields}
    return f"{flag} (in sculpt's own YAML `policies: {{{way.option}: {way.value}}}`)" if is_policy else flag


def table(
    title: str,
    columns: list[str],
    rows: list[list[str]],
    *,
    note: str | None = None,
    bar: int | None = None,
    text: int | None = None,
    aside: bool = False,
) -> None:
    """Print a table; the first column is a name, the others are figures.

    Args:
        note: A line below it.
        bar: The column that is left out first where there is no room.
        text: The column that may run over several lines.
        aside: On stderr, of a command that is for something else.
    """
    if not speaks():
        return
    to = console if aside else answers
    cells = [[shown(cell) for cell in row] for row in rows]
    columns = [*map(shown, columns)]
    head, *body = table_lines(columns, cells, to.width if to.is_terminal else None, bar=bar, text=text)
    if aside:
        say("\n".join([title, head, *body, *([] if note is None else [note])]))
        return
    answers.print(Text(shown(title)), style="bold", soft_wrap=True)
    answers.print(Text(head), style="bold", soft_wrap=True)
    for line in body:
        answers.print(Text(line), soft_wrap=True)
    if note is not None:
        answers.print(Text(note), style="dim", soft_wrap=True)


def show_table(content: Table, *, text: int | None = None, aside: bool = False) -> None:
    """Print a table that a result gives of itself."""
    rows = [list(row) for row in content.rows]
    table(content.title, list(content.columns), rows, note=content.note or None, text=text, aside=aside)


def show_chart(title: str, chart: str, *, asked: bool | None = None) -> None:
    """Print a chart in letters, where it is asked for; by default where there is a terminal to look at it."""
    if answers.is_terminal if asked is None else asked:
        out(f"\n{title}" if title else "")
        answers.print(Text("\n".join(map(shown, chart.split("\n")))), soft_wrap=True)


def paragraphs(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with a text of any length beside each, on stdout."""
    rows = [(shown(name), text) for name, text in rows]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        room = max(20, (answers.width if answers.is_terminal else 10_000) - width - 4)
        lines = [line for part in shown_lines(text) for line in textwrap.wrap(part, room) or [""]] or [""]
        for k, line in enumerate(lines):
            answers.print(Text(f"  {name if not k else '':<{width}}  {line}"), soft_wrap=True)


def shown_lines(text: str) -> list[str]:
    """Return the lines of a text that others wrote, without blank ones around it."""
    return [shown(line) for line in text.strip().split("\n")]


def quiet_environment() -> None:
    """Set what must be set before torch and transformers are imported, if they are: no hub, warnings or bars."""
    keep_offline()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own too


def quiet_libraries() -> None:
    """Import transformers without warnings and bars of its own."""
    quiet_environment()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def gigabytes(nbytes: float) -> str:
    """Return bytes for people: `2.20 GB`, `34 MB`."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}" if nbytes < 10 * size else f"{nbytes / size:.0f} {unit}"
    return f"{nbytes:.0f} B"


def count(number: int) -> str:
    """Return a number of parameters for people: `1.10 B`, `34.2 M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)
