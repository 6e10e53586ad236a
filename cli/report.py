"""`sculpt report`: a page about a fused model."""

from __future__ import annotations

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
    """Write one HTML page about a fused model: what was kept and forgotten, scores, what was done to each layer.

    It needs no network and opens in any browser.

    **Examples**

        sculpt report sft-two-sided/

        sculpt report sft-two-sided/ --scores base.json --scores fused.json -o report.html
    """
    from ..evaluate.report import report
    from ..fusion.ref import refuse_patched
    from .console import gigabytes, out, print_json

    refuse_patched(fused)
    page = report(fused, output=output, scores=scores or (), overwrite=overwrite)
    if json:
        print_json({"output": str(page), "bytes": page.stat().st_size})
    else:
        out(f"wrote {page}, {gigabytes(page.stat().st_size)}")


def register(app: typer.Typer) -> None:
    """Add `report`."""
    app.command("report")(report_command)
