"""Charts as files: PNG, SVG or PDF, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from .checkpoint.output.guard import file_kind
from .checkpoint.output.workspace import write_file
from .errors import ModelError, installs

PICTURE = file_kind("picture", b"\x89PNG", b"<?xml", b"%PDF")
DOTS_PER_INCH = 150


def new_figure(width: float, height: float, *, hint: str = "") -> Any:
    """Return an empty figure of matplotlib's.

    Args:
        width, height: In inches.
        hint: What else there is, where matplotlib is not installed.

    Raises:
        ModelError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        told = installs("plots") + (hint and f"; {hint}")
        raise ModelError("charts as files need matplotlib", hint=told) from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_into(figure: Any, file: Path | IO[bytes]) -> None:
    """Write a figure as the file's name ends, or as PNG into a stream; without the time at which that was."""
    ending = file.suffix if isinstance(file, Path) else ".png"
    date = {".svg": "Date", ".pdf": "CreationDate"}.get(ending)
    figure.savefig(file, dpi=DOTS_PER_INCH, metadata=None if date is None else {date: None})


def write_picture(figure: Any, file: Path, *, made_by: str, overwrite: bool) -> None:
    """Write a figure under a name that it has once it is whole.

    Raises:
        ModelError: There are no pictures of that kind.
        OutputError: The file cannot be written.
    """
    try:
        may_replace = PICTURE.may_replace if overwrite else None
        write_file(file, lambda path: draw_into(figure, path), made_by=made_by, may_replace=may_replace)
    except ValueError as error:
        raise ModelError(f"`{file}` cannot be drawn: {error}") from error
