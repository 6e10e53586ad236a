"""`sculpt untie`: store the output vocabulary of a tied model beside its embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson

Model = Annotated[Path, typer.Argument(help="A checkpoint that ties its output vocabulary to its embeddings.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Output folder. Default: MODEL-untied.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")]


def untie_command(model: Model, output: Output = None, overwrite: Overwrite = False, json: AsJson = False) -> None:
    """Store the output layer of a tied model as a tensor of its own. Adapters that train it can then be merged.

    **Examples**

        sculpt untie base/ -o base-untied/

        sculpt lora-merge base-untied/ adapter/
    """
    from ..fusion.checkpoint import find_model
    from ..fusion.run.untie import untie
    from .console import print_json, say
    from .fuse import command_line
    from .progress import progress_bar

    target = output or find_model(model).beside("-untied")
    with progress_bar("untying") as report:
        manifest = untie(model, output=target, command=command_line(), overwrite=overwrite, progress=report)
    if json:
        print_json({"output": str(target), **manifest.as_json()})
    else:
        say(f"wrote {target}: {len(manifest.tensors)} tensors, nothing tied")


def register(app: typer.Typer) -> None:
    """Add `untie`."""
    app.command("untie")(untie_command)
