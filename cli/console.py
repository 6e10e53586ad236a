"""What people see: tables and progress on stderr; data for programs on stdout."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..fusion.errors import SculptError, Way
    from ..fusion.progress import Progress as Report

WIDTH_WITHOUT_TERMINAL = 140  # of tables in a log file
# Control characters, those that turn the direction of text, and halves of characters.
_OTHERS = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
UNSHOWN, UNSHOWN_IN_JSON = re.compile(rf"[\x00-\x1f{_OTHERS}]"), re.compile(f"[{_OTHERS}]")
console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDTH_WITHOUT_TERMINAL)


def shown(text: str) -> str:
    """Return a text with what a terminal would obey, not show, escaped: names in it are those of others' files."""
    return UNSHOWN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def speaks() -> bool:
    """Return whether this process speaks for all that share a command; all tell of what goes wrong."""
    from ..fusion.checkpoint.output.launch import launched

    return launched().is_first


def say(text: str) -> None:
    """Print a line for people, or a few."""
    if speaks():
        console.print(Text("\n".join(map(shown, text.split("\n")))))


def print_json(content: Any) -> None:
    """Print data for programs, keys sorted."""
    if not speaks():
        return
    is_utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=not is_utf8)
    sys.stdout.write(UNSHOWN_IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text) + "\n")


class _Warnings(logging.Handler):
    """Says what the library warns of."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def show_warnings() -> None:
    """Have the library's warnings said like everything else."""
    library = logging.getLogger(__name__.partition(".")[0])
    if not any(isinstance(handler, _Warnings) for handler in library.handlers):
        library.addHandler(_Warnings(logging.WARNING))


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
    if hint:
        console.print(Text.assemble("\n", ("hint: ", "bold"), hint), soft_wrap=True)


def _way(way: Way, *, recipe: bool) -> str:
    """Return a way out as it is written: a flag, which may be a recipe's key too."""
    from .options import POLICIES, flag_named

    name = flag_named(way.option)
    flag = f"`--no-{name[2:]}`" if way.value == "false" else f"`{' '.join(filter(None, (name, way.value)))}`"
    is_policy = recipe and way.option in {field.name for field, _ in POLICIES.fields}
    return f"{flag} (in sculpt's own YAML `policies: {{{way.option}: {way.value}}}`)" if is_policy else flag


def table(title: str, columns: list[str], rows: list[list[str]], *, note: str | None = None) -> None:
    """Print a table; the first column is text, the others are figures."""
    if not speaks():
        return
    view = Table(
        title=Text(shown(title)),
        title_justify="left",
        title_style="bold",
        caption=note,
        caption_justify="left",
        box=None,
    )
    for i, column in enumerate(columns):
        view.add_column(Text(shown(column)), justify="right" if i else "left", no_wrap=i > 0, overflow="fold")
    for row in rows:
        view.add_row(*(Text(shown(cell)) for cell in row))
    console.print(view)


def quiet_environment() -> None:
    """Set what must be set before torch and transformers are imported, if they are: no hub, warnings or bars."""
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


@contextmanager
def progress_bar(what: str, *, unit: str = "bytes", hidden: bool = False) -> Iterator[Report]:
    """Show a bar with rate and time left while the block runs; yields what to report to.

    Without a terminal nothing is drawn.
    """
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
    columns += [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns += [TimeRemainingColumn(), TextColumn("{task.fields[item]}")]
    with Progress(
        *columns, console=console, transient=True, disable=hidden or not (console.is_terminal and speaks())
    ) as bar:
        task = bar.add_task(what, total=None, item="")

        def report(done: int, total: int, item: str) -> None:
            bar.update(task, completed=done, total=total, item=shown(item[-40:]))

        yield report


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
