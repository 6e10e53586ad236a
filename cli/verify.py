"""`sculpt verify`: is a fused checkpoint what its manifest says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson

if TYPE_CHECKING:
    from ..live.load_check import LoadReport

Output = Annotated[Path, typer.Argument(help="A checkpoint that sculpt wrote.")]
Inputs = Annotated[list[Path] | None, typer.Option("--input", help="Also check an input it was made from; repeatable.")]
Load = Annotated[bool, typer.Option("--load", help="Also check that transformers would load it whole; any folder.")]


def verify_command(output: Output, inputs: Inputs = None, load: Load = False, json: AsJson = False) -> None:
    """Compare every file of a fused checkpoint with the digests in its manifest; exit 1 at the first difference.

    A file that the manifest does not name is a difference too, and so is a change of the manifest itself.

    `--load` also asks transformers, of any checkpoint, whether its names and shapes are those of the class that
    `config.json` names. No weight is read for it.

    **Examples**

        sculpt verify sft-fused/

        sculpt verify sft-fused/ --input base/ --input sft/

        sculpt verify --load merged/
    """
    from ..fusion.record.manifest import MANIFEST
    from ..fusion.record.verify import verify
    from .console import gigabytes, print_json, say

    result: dict[str, Any] = {"ok": True}
    if not load or inputs or (output / MANIFEST).is_file():
        found = verify(output, inputs or ())
        result |= {"files": found.num_files, "bytes": found.nbytes, "method": found.manifest.method}
        if not json:
            say(f"{output} is what its manifest says: {found.num_files} files, {gigabytes(found.nbytes)}")
    if load:
        report = _loaded(output)
        result |= {"class": report.class_name}
        if not json:
            say(f"{output}: {report.told}")
    if json:
        print_json(result)


def _loaded(output: Path) -> LoadReport:
    from ..fusion.checkpoint import Checkpoint
    from .console import quiet_environment

    quiet_environment()
    from ..live.load_check import check_loads

    opened = Checkpoint(output)
    return check_loads({opened.name_in_file(name): info for name, info in opened.tensors.items()}, opened.config)


def register(app: typer.Typer) -> None:
    """Add `verify`."""
    app.command("verify")(verify_command)
