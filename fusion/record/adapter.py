"""The manifest of an adapter: how it was made, and the digests of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint.json_file import read_json
from ..errors import CheckpointError
from ..file_kinds import ADAPTER_RECORD
from .files import FileRecord, files_of
from .manifest import digest_of

ALGORITHM = "xxh3-128"


def adapter_record(folder: Path, made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `sculpt-adapter.json` holds of a folder that is whole but for it, with a digest of all of it."""
    files = [asdict(FileRecord.of(file, folder, ALGORITHM)) for file in files_of(folder)]
    content = {**made, "files": files}
    return {**content, "digest": digest_of(content)}


def read_adapter_record(folder: Path) -> tuple[dict[str, Any], tuple[FileRecord, ...]]:
    """Return how an adapter was made, and the files that it has.

    Raises:
        CheckpointError: The record is malformed, was changed, or is of an adapter that had none of its files in it.
    """
    file = folder / ADAPTER_RECORD
    content = read_json(file)
    if not isinstance(content, dict) or "files" not in content:
        raise CheckpointError(f"`{file}` has no digests", hint="adapters of older versions of sculpt have none")
    if content.pop("digest", None) != digest_of(content):
        raise CheckpointError(f"`{file}` was changed: its content does not have its own digest")
    try:
        return content, tuple(FileRecord(**one) for one in content["files"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"`{file}` is malformed: {error}") from error
