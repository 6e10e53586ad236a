"""The files of an output and of its inputs, with their digests."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..digests import DIGESTS, digest_of_file
from ..file_kinds import MANIFEST, PROVENANCE, SBOM, SIGNATURE, TENSORS
from ..places.ranges import ranged

# Made of the manifest later, or put there by the hub and by git.
BESIDE = (SBOM, PROVENANCE, SIGNATURE, ".gitattributes", ".git/*", ".cache/huggingface/*")


def file_digest(file: Path, algorithm: str) -> str:
    """Return `algorithm:hex` of a file's bytes, or of those that it stands for."""
    if (elsewhere := ranged(file)) is not None:
        return f"{algorithm}:{elsewhere.digest(DIGESTS[algorithm])}"
    return digest_of_file(file, algorithm)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file: its name within its checkpoint, with `/` between folders, size and digest."""

    name: str
    nbytes: int
    digest: str

    def __post_init__(self) -> None:
        # A manifest comes along with what it is about: it must not have another file of this machine read.
        place = PurePosixPath(self.name)
        is_long = any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in place.parts)
        if place.is_absolute() or not place.parts or ".." in place.parts or is_long or "\0" in self.name:
            raise ValueError(f"`{self.name}` is not the name of a file in the folder")
        if self.digest.partition(":")[0] not in DIGESTS:
            raise ValueError(f"`{self.digest}` is not a digest")
        if self.nbytes < 0:
            raise ValueError(f"`{self.name}` cannot have {self.nbytes} bytes")

    @classmethod
    def of(cls, file: Path, folder: Path, algorithm: str) -> FileRecord:
        """Describe a file of a folder."""
        return cls(
            name=file.relative_to(folder).as_posix(),
            nbytes=file.stat().st_size,
            digest=file_digest(file, algorithm),
        )


def files_of(folder: Path) -> list[Path]:
    """Return what a manifest accounts for: every file of an output but the manifest and what was made of it later."""
    found = (file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir())
    return sorted(file for file in found if not _is_beside(file.relative_to(folder)))


def _is_beside(name: Path) -> bool:
    return any(fnmatchcase(name.as_posix(), pattern) for pattern in (MANIFEST, TENSORS, *BESIDE))
