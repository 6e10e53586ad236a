"""`sculpt status`: what there is of an output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson

if TYPE_CHECKING:
    from ..fusion.checkpoint.output.status import Unfinished

Output = Annotated[Path, typer.Argument(help="The output, as `-o` named it, or the default.")]


def status_command(output: Output, json: AsJson = False) -> None:
    """Say whether an output is complete, unfinished or being written, and what the next run will do with it.

    Nothing is changed. The exit code is 0 if it is complete, otherwise 1.

    **Examples**

        sculpt status sft-two-sided/

        sculpt status hessian.safetensors --json
    """
    from ..fusion.checkpoint.output.status import unfinished
    from .console import gigabytes, out, print_json

    kind, found = kind_of(output), unfinished(output)
    if json:
        print_json({"output": str(output), "kind": kind, "unfinished": [one.as_json() for one in found]})
    else:
        if kind is not None:
            out(f"{output}: {kind}")
        elif output.exists():
            out(f"{output}: not written by sculpt")
        else:
            out(f"{output}: nothing there")
        for one in found:
            done = f"{one.done}, " if one.done else ""
            out(f"{one.folder}: unfinished `{one.made_by}`, {done}{gigabytes(one.nbytes)}; {_what_next(one)}")
    if kind is None:
        raise typer.Exit(1)


def _what_next(one: Unfinished) -> str:
    if one.is_running:
        return "a run is writing it"
    if one.holds_former:
        return "the next run with this output gives the former one its name back first"
    if one.done:
        return "the same command goes on from here"
    return "the next run with this output removes it"


def kind_of(output: Path) -> str | None:
    """Return what kind of output of sculpt's a path is, or None."""
    from ..evaluate.report import PAGE
    from ..evaluate.starter import SUITE, TEXTS
    from ..fusion.checkpoint.output.guard import ADAPTER, CHECKPOINT, SWEEP
    from ..fusion.patch.writer import PATCH
    from ..fusion.picture import PICTURE
    from ..fusion.table import TABLE
    from ..hessian.store.file_format import STATISTICS

    kinds = (CHECKPOINT, ADAPTER, SWEEP, STATISTICS, PATCH, PAGE, SUITE, TEXTS, TABLE, PICTURE)
    fitting = [kind for kind in kinds if (output.is_dir() if kind.is_folder else output.is_file())]
    return next((kind.name for kind in fitting if kind.is_ours(output)), None)


def register(app: typer.Typer) -> None:
    """Add `status`."""
    app.command("status")(status_command)
