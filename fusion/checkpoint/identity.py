"""Which file it was that was opened, and whether it is still the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from ..digests import digest_of_file
from ..errors import CheckpointError
from ..places.ranges import ranged


@dataclass(frozen=True, kw_only=True)
class FileIdentity:
    """What changes when a file is written to, or another takes its name."""

    nbytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, file: Path) -> FileIdentity:
        """Return a file's identity.

        Raises:
            CheckpointError: It cannot be looked at.
        """
        try:
            found = file.stat()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read `{file}`: {getattr(error, 'strerror', None) or error}") from error
        return cls(nbytes=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino)

    def as_json(self) -> list[int]:
        """Return plain values."""
        return [self.nbytes, self.mtime_ns, self.inode]


def identities(files: Iterable[Path]) -> dict[Path, FileIdentity]:
    """Return the identity of each file that is there."""
    return {file: FileIdentity.of(file) for file in files if file.is_file()}


def refuse_changed(before: Mapping[Path, FileIdentity]) -> None:
    """Raise CheckpointError where a file is not what it was when it was opened."""
    for file, identity in before.items():
        if not file.exists() or FileIdentity.of(file) != identity:
            raise CheckpointError(
                f"`{file}` changed while it was read", hint="run the command again when nothing writes to it"
            )
        if (elsewhere := ranged(file)) is not None:
            elsewhere.refuse_changed()


def digest_of_data(path: Path) -> str:
    """Return a digest of a data file; of a data folder, of its files' names, sizes and times."""
    if not path.is_dir():
        return digest_of_file(path)
    digest = xxhash.xxh3_128()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        identity = FileIdentity.of(file)
        digest.update(f"{file.relative_to(path)} {identity.nbytes} {identity.mtime_ns}\n".encode())
    return f"xxh3-128:{digest.hexdigest()}"
