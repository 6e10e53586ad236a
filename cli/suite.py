"""`sculpt suite`: a suite to begin with, of the data at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init_command(
    data: Annotated[Path, typer.Argument(help="Samples of the task on which the model was not trained.")],
    general: Annotated[
        Path | None,
        typer.Option(
            "--general", help="Data for what the base could do: text, or questions. Default: from the general set."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The suite.")] = Path("suite.yaml"),
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of rows of each file to score.")] = 200,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Write a first suite for `eval`, `sweep`, `repair` and `gate`: a target task from your rows, and general text.

    **Examples**

        sculpt suite init held-out.jsonl

        sculpt suite init held-out.jsonl --general prose.jsonl --limit 100 -o small.yaml
    """
    from ..evaluate.starter import write_suite
    from .console import out, say

    told = write_suite(output, data, general, limit=limit, overwrite=overwrite)
    for note in told:
        say(f"note: {note}")
    out(f"wrote {output}")


def register(app: typer.Typer) -> None:
    """Add the group `suite`."""
    group = typer.Typer(no_args_is_help=True, help="Suites of tasks that models are scored on.")
    group.callback()(lambda: None)
    group.command("init")(init_command)
    app.add_typer(group, name="suite")
