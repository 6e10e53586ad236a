"""Statements and signatures of finished outputs; keys are PEM files, and nothing is sent anywhere.

Signatures are those of `model-signing` (OpenSSF): over every file of the folder, so that others need no sculpt to check
them. It is an optional dependency.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ..checkpoint.output.disk import sync
from ..checkpoint.output.workspace import ATTEST, Workspace, told
from ..errors import CheckpointError, MethodError, first_line, installs
from ..file_kinds import SIGNATURE
from .statements import statements
from .verify import verify_files

logger = logging.getLogger(__name__)
PASSWORD = "SCULPT_KEY_PASSWORD"  # the environment variable of a private key that has one


def attest(output: Path | str, private_key: Path | str | None = None) -> list[Path]:
    """Write a bill of materials and a statement of provenance into an output, and sign all of it if there is a key.

    Returns:
        The files that were written, those of an earlier call replaced.

    Raises:
        CheckpointError: The folder is not what its manifest says.
        MethodError: The key cannot be used, or `model-signing` is not installed.
        OutputError: A file cannot be written.
    """
    folder = Path(output)
    signer = None if private_key is None else _signing()
    manifest, _ = verify_files(folder)
    signature = folder / SIGNATURE
    with Workspace(folder, made_by="attest", suffix=ATTEST) as workspace, told(folder):
        workspace.empty()
        signature.unlink(missing_ok=True)  # of what was there before
        made = []
        for name, text in statements(folder, manifest).items():
            made.append(workspace.folder / name)
            made[-1].write_text(text, encoding="utf-8")
        written = [_move(file, folder) for file in made]
        if signer is not None:
            file = workspace.folder / SIGNATURE
            try:
                hashing = signer.hashing.Config().set_ignored_paths(paths=[signature, folder / ".cache"])
                key = {"private_key": Path(private_key or ""), "password": os.environ.get(PASSWORD)}
                signer.signing.Config().use_elliptic_key_signer(**key).set_hashing_config(hashing).sign(folder, file)
            except Exception as error:  # it raises anything on a key that is none
                if isinstance(error, OSError) and Path(private_key or "").is_file():
                    raise
                said = f"`{private_key}` cannot sign: {first_line(error)}"
                raise MethodError(said, options=["private_key"]) from error
            written.append(_move(file, folder))
    return written


def _move(file: Path, folder: Path) -> Path:
    """Bring a file to the disk and give it its name in a folder."""
    sync(file)
    target = file.replace(folder / file.name)
    try:
        sync(folder)
    except OSError as error:
        logger.warning("`%s` is complete, but a power cut may undo it: %s", target, error.strerror or error)
    return target


def verify_signature(output: Path | str, public_key: Path | str) -> None:
    """Check the signature over every file of an output.

    Raises:
        CheckpointError: There is none, it is another key's, or a file is not what was signed.
        MethodError: `model-signing` is not installed.
    """
    folder, signer = Path(output), _signing()
    file = folder / SIGNATURE
    if not file.is_file():
        raise CheckpointError(f"`{folder}` is not signed: it holds no `{SIGNATURE}`")
    try:
        signer.verifying.Config().use_elliptic_key_verifier(public_key=Path(public_key)).verify(folder, file)
    except Exception as error:  # of the key, of the signature, of what it is over
        raise CheckpointError(
            f"`{file}` is not a signature of `{folder}` by `{public_key}`: {first_line(error)}"
        ) from error


def _signing() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise MethodError("signatures need model-signing", hint=installs("sign")) from error
    return model_signing
