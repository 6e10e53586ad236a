"""`sculpt verify`: is a fused checkpoint what its manifest says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson

Output = Annotated[Path, typer.Argument(help="A checkpoint that sculpt wrote.")]
Inputs = Annotated[list[Path] | None, typer.Option("--input", help="Also check an input it was made from; repeatable.")]


def verify_command(output: Output, inputs: Inputs = None, json: AsJson = False) -> None:
    """Compare every file of a fused checkpoint with the digests in its manifest; exit 1 at the first difference.

    A file that the manifest does not name is a difference too, and so is a change of the manifest itself.

    **Examples**

        sculpt verify sft-fused/

        sculpt verify sft-fused/ --input base/ --input sft/
    """
    from ..fusion.record.verify import verify
    from .console import gigabytes, print_json, say

    found = verify(output, inputs or ())
    if json:
        print_json({"ok": True, "files": found.num_files, "bytes": found.nbytes, "method": found.manifest.method})
    else:
        say(f"{output} is what its manifest says: {found.num_files} files, {gigabytes(found.nbytes)}")


def register(app: typer.Typer) -> None:
    """Add `verify`."""
    app.command("verify")(verify_command)
