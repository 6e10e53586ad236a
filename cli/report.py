"""`sculpt report`: a page about a fused model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Fused = Annotated[Path, typer.Argument(help="A checkpoint that sculpt wrote.")]


def report_command(
    fused: Fused,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page. Default: FUSED-report.html, beside the checkpoint.")
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option("--scores", help="What `sculpt eval --json` printed, in a file; repeatable: base, tuned, fused."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
) -> None:
    """Write one HTML page: what was done to each layer, distances and bounds, scores, provenance.

    It needs no network and opens in any browser.

    **Examples**

        sculpt report sft-fused/

        sculpt report sft-fused/ --scores base.json --scores fused.json -o report.html
    """
    from ..evaluate.report import PAGE, make_report
    from ..fusion.checkpoint.output.guard import refuse_output
    from ..fusion.checkpoint.output.workspace import write_file
    from .console import gigabytes, say

    page = output or fused.resolve().with_name(f"{fused.resolve().name}-report.html")
    refuse_output(page, [fused, *(scores or ())], PAGE, overwrite=overwrite)
    text = make_report(fused, scores=scores or ())
    write_file(
        page,
        lambda file: file.write_text(text, encoding="utf-8"),
        made_by="report",
        may_replace=PAGE.may_replace if overwrite else None,
    )
    say(f"wrote {page}, {gigabytes(page.stat().st_size)}")


def register(app: typer.Typer) -> None:
    """Add `report`."""
    app.command("report")(report_command)
