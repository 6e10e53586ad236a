"""Is a fused checkpoint what its manifest says?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import open_checkpoint
from ..checkpoint.open import needs_base
from ..errors import CheckpointError
from ..file_kinds import ADAPTER_RECORD, PROVENANCE, SBOM
from ..places.pointer import nbytes_of
from ..ref import find_model
from .adapter import ALGORITHM, read_adapter_record
from .files import FileRecord, file_digest, files_of
from .manifest import Manifest, name_within
from .statements import statements


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found equal: what made the output, and how many files and bytes were read."""

    made_by: str
    num_files: int
    nbytes: int


def _check(folder: Path, records: Sequence[FileRecord]) -> int:
    for record in records:
        file = folder / record.name
        if not file.is_file():
            raise CheckpointError(f"`{file}` is missing")
        if (nbytes := nbytes_of(file)) != record.nbytes:
            raise CheckpointError(f"`{file}` has {nbytes} bytes, the manifest says {record.nbytes}")
        found = file_digest(file, record.digest.split(":")[0])
        if found != record.digest:
            raise CheckpointError(f"`{file}` is {found}, the manifest says {record.digest}")
    return sum(record.nbytes for record in records)


def verify_files(folder: Path) -> tuple[Manifest, Verified]:
    """Compare every file that an output had when it was made with the digests in its manifest; return both.

    Raises:
        CheckpointError: The first difference, in one sentence.
    """
    manifest = Manifest.read(folder)
    records = (*manifest.outputs, *manifest.companions)
    if folder.is_file():
        folder = folder.parent
    else:
        _refuse_unknown(folder, records)
    return manifest, Verified(made_by=manifest.method, num_files=len(records), nbytes=_check(folder, records))


def _refuse_unknown(folder: Path, records: Sequence[FileRecord]) -> None:
    known = {record.name for record in records}
    unknown = next((file for file in files_of(folder) if file.relative_to(folder).as_posix() not in known), None)
    if unknown is not None:
        raise CheckpointError(f"`{unknown}` is not in the manifest")


def _verify_adapter(folder: Path, inputs: Sequence[Path | str]) -> Verified:
    record, files = read_adapter_record(folder)
    _refuse_unknown(folder, (*files, FileRecord.of(folder / ADAPTER_RECORD, folder, ALGORITHM)))
    base = record.get("base")
    for path in inputs:
        known = base.get("fingerprint") if isinstance(base, dict) else None
        if open_checkpoint(path).fingerprint != known:
            raise CheckpointError(f"`{path}` is not the base that `{folder}` was made over")
    return Verified(made_by=str(record.get("made by")), num_files=len(files), nbytes=_check(folder, files))


def verify(output: Path | str, inputs: Sequence[Path | str] = ()) -> Verified:
    """Compare every file of a fused checkpoint, and any of its inputs, with the digests in its manifest.

    A bill of materials and a statement of provenance are made again and compared, where they are there.
    Nothing may be there that the manifest does not name: code, another shard and an adapter are all loaded by somebody.

    Args:
        inputs: Checkpoints that it was made from; each must be one that the manifest names, by fingerprint. An adapter
            is read over the base among them.

    Raises:
        CheckpointError: The first difference, in one sentence.
    """
    folder = Path(output)
    if (folder / ADAPTER_RECORD).is_file():
        return _verify_adapter(folder, inputs)
    manifest, found = verify_files(folder)
    nbytes, num_files = found.nbytes, found.num_files
    present = [folder / name for name in (SBOM, PROVENANCE) if (folder / name).exists()]
    expected = statements(folder, manifest) if present else {}
    for file in present:
        if file.read_bytes() != expected[file.name].encode():
            raise CheckpointError(
                f"`{file}` does not describe the files of the folder", hint="`sculpt attest` writes it"
            )
    whole = next((path for path in inputs if not needs_base(find_model(path))), None)
    for path in inputs:
        checkpoint = open_checkpoint(path, whole)
        known = [found for found in manifest.inputs if found.fingerprint == checkpoint.fingerprint]
        if not known:
            raise CheckpointError(f"`{path}` is not one of the checkpoints that `{folder}` was made from")
        # One model may have been given twice, in two layouts.
        names = {name_within(file, checkpoint) for file in checkpoint.all_files}
        record = next((found for found in known if {file.name for file in found.files} == names), known[0])
        where = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        nbytes += _check(where, record.files)
        num_files += len(record.files)
    return Verified(made_by=manifest.method, num_files=num_files, nbytes=nbytes)
