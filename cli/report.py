"""`sculpt report`: a page about a fused model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson

Fused = Annotated[Path, typer.Argument(help="A checkpoint that sculpt wrote.")]


def report_command(
    fused: Fused,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page. Default: FUSED-report.html, beside the checkpoint.")
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option("--scores", help="What `eval --json` or `gate --json` printed, or a sweep.json; repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    json: AsJson = False,
) -> None:
    """Write one HTML page: what was done to each layer, distances and bounds, scores, provenance.

    It needs no network and opens in any browser.

    **Examples**

        sculpt report sft-two-sided/

        sculpt report sft-two-sided/ --scores base.json --scores fused.json -o report.html
    """
    from ..evaluate.report import PAGE
    from ..fusion.checkpoint.output.guard import refuse_output
    from ..fusion.ref import refuse_patched
    from .console import gigabytes, out, print_json

    refuse_patched(fused)
    page = output or fused.resolve().with_name(f"{fused.resolve().name}-report.html")
    refuse_output(page, [fused, *(scores or ())], PAGE, overwrite=overwrite)
    write_report(fused, page, scores or (), overwrite=overwrite)
    if json:
        print_json({"output": str(page), "bytes": page.stat().st_size})
    else:
        out(f"wrote {page}, {gigabytes(page.stat().st_size)}")


def write_report(fused: Path, page: Path, scores: Sequence[Path], *, overwrite: bool) -> None:
    """Write the page of a fused model."""
    from ..evaluate.report import PAGE, make_report
    from ..fusion.checkpoint.output.workspace import write_file

    text = make_report(fused, scores=scores)
    write_file(
        page,
        lambda file: file.write_text(text, encoding="utf-8"),
        made_by="report",
        may_replace=PAGE.may_replace if overwrite else None,
    )


def register(app: typer.Typer) -> None:
    """Add `report`."""
    app.command("report")(report_command)
