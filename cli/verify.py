"""`sculpt verify` and `attest`: is a fused checkpoint what its manifest says, and who says so?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, refuse_missing

Output = Annotated[Path, typer.Argument(help="A checkpoint folder or file that sculpt wrote.")]
Inputs = Annotated[
    list[Path] | None, typer.Option("--input", help="Also check an input that it was made from; repeatable.")
]
Load = Annotated[
    bool, typer.Option("--load", help="Also check that transformers could load it completely; for any folder.")
]


PublicKey = Annotated[
    Path | None, typer.Option("--public-key", metavar="PEM", help="Also check the signature over the folder.")
]
PrivateKey = Annotated[
    Path | None,
    typer.Option("--private-key", metavar="PEM", help="Sign too; its password, if any, is in SCULPT_KEY_PASSWORD."),
]


def verify_command(
    output: Output,
    inputs: Inputs = None,
    load: Load = False,
    public_key: PublicKey = None,
    json: AsJson = False,
) -> None:
    """Compare every file of an output with the digests in its manifest; exit with code 1 at the first difference.

    A file that the manifest does not name is also a difference, and so is a change of the manifest.

    `--load` also checks, for any checkpoint, that names and shapes are those of the class that `config.json` names. It
    reads no weights.

    **Examples**

        sculpt verify sft-two-sided/

        sculpt verify sft-two-sided/ --input base/ --input sft/

        sculpt verify --load merged/

        sculpt verify sft-two-sided/ --public-key release.pub
    """
    from ..fusion.file_kinds import ADAPTER_RECORD, MANIFEST
    from ..fusion.record.verify import verify
    from ..fusion.ref import refuse_patched
    from .console import gigabytes, out, print_json, quiet_environment

    refuse_patched(output)
    refuse_missing(inputs or (), [output])
    result: dict[str, Any] = {"ok": True}
    if not load or inputs or any((output / mark).is_file() for mark in (MANIFEST, ADAPTER_RECORD)):
        found = verify(output, inputs or ())
        result |= {"files": found.num_files, "bytes": found.nbytes, "method": found.made_by}
        if not json:
            out(f"{output} is what its manifest says: {found.num_files} files, {gigabytes(found.nbytes)}")
    if public_key is not None:
        from ..fusion.record.signing import verify_signature

        verify_signature(output, public_key)
        result |= {"signed": True}
        if not json:
            out(f"{output} is signed by {public_key}")
    if load:
        from ..api import check_loads

        quiet_environment()
        report = check_loads(output)
        result |= {"class": report.class_name}
        if not json:
            out(f"{output}: {report.told}")
    if json:
        print_json(result)


def attest_command(output: Output, private_key: PrivateKey = None, json: AsJson = False) -> None:
    """Write a bill of materials (CycloneDX) and a statement of provenance (in-toto, SLSA) into a fused checkpoint.

    The checkpoint is verified first. With a key, `model-signing` signs all of its files, offline. Check the signature
    with `sculpt verify --public-key` or `model_signing verify`. It needs `pip install 'checkpoint-sculpt[sign]'`.

    **Examples**

        sculpt attest sft-two-sided/

        sculpt attest sft-two-sided/ --private-key release.pem
    """
    from ..fusion.record.signing import attest
    from ..fusion.ref import refuse_patched
    from .console import out, print_json

    refuse_patched(output)
    written = attest(output, private_key)
    if json:
        print_json({"output": str(output), "files": [file.name for file in written]})
    else:
        out(f"wrote {', '.join(file.name for file in written)} into {output}")


def register(app: typer.Typer) -> None:
    """Add `verify` and `attest`."""
    app.command("verify")(verify_command)
    app.command("attest")(attest_command)
