"""What lies beside the weights: configuration, tokenizer, processor, code, further weights; and what is none of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import CheckpointError
from ..file_kinds import (
    MANIFEST,
    PROCESSOR_STEMS,
    TENSORS,
    TOKENIZER_STEMS,
    TRAINING_FILES,
    Kind,
    is_private,
    kind_of,
    why_left,
)


def lies_inside(file: Path, folder: Path) -> bool:
    """Return whether a file lies in a folder once links are followed.

    The hub's cache is a folder of links: what a snapshot holds lies among the `blobs` of the same model.
    """
    here = folder.resolve()
    homes = [found.parent for found in here.parents if found.name == "snapshots"]
    roots = [here, *(home / "blobs" for home in homes)]
    return any(root in file.resolve().parents for root in roots)


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A file or folder beside a model's weights.

    Attributes:
        name: Within the model's folder.
        kind: What it is to the model.
        left: Why it is never copied, in words; None where it may be. A folder that is left stands for all within.
    """

    name: Path
    file: Path
    kind: Kind
    left: str | None = None


def look_beside(folder: Path, read: Collection[Path]) -> list[Companion]:
    """Return all that lies in a folder beside the files that are read as the model's tensors, by name.

    Raises:
        CheckpointError: Something that could be copied is a link out of the folder: it may be anything.
    """
    weights = {file.resolve() for file in read}
    found = [
        _companion(file.relative_to(folder), file)
        for file in _walk(folder)
        if file.resolve() not in weights and file.name not in (MANIFEST, TENSORS)
    ]
    for companion in found:
        if companion.left is None and not lies_inside(companion.file, folder):
            raise CheckpointError(
                f"`{companion.file}` is a link out of its folder, to `{companion.file.resolve()}`",
                hint="copy the file there if it belongs to the model, or else remove the link",
            )
    return found


def further_weights(folder: Path, read: Collection[Path]) -> list[Path]:
    """Return the weight files in a folder itself, beside those that are read, that are no other form of them."""
    return [
        found.file
        for found in look_beside(folder, read)
        if found.kind == "weights" and found.left is None and len(found.name.parts) == 1
    ]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield files in order, and folders that are left as they are."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.is_dir() or why_left(Path(entry.name), is_folder=True) is not None or entry.is_symlink():
                yield Path(entry.path)
            else:
                yield from _walk(Path(entry.path))


def _companion(name: Path, file: Path) -> Companion:
    left = why_left(name, is_folder=file.is_dir()) or (None if file.is_file() else "no file")
    return Companion(name=name, file=file, kind=kind_of(name), left=left)


def own_files(folder: Path, files: Iterable[Path]) -> dict[Path, Path]:
    """Return the files among those of a folder, by name within it, but for private ones.

    Raises:
        CheckpointError: One is a link out of the folder: what it shows is not the model's, and may be anything.
    """
    found = {}
    for file in sorted(files):
        name = file.relative_to(folder)
        if not file.is_file() or is_private(name):
            continue
        if not lies_inside(file, folder):
            raise CheckpointError(
                f"`{file}` is a link out of its folder, to `{file.resolve()}`",
                hint="copy the file there if it belongs to the model, or else remove the link",
            )
        found[name] = file
    return found


def files_of_tokenizer(folder: Path) -> dict[Path, Path]:
    """Return the files of a tokenizer or processor, by name.

    Raises:
        CheckpointError: One is a link out of the folder.
    """
    stems = (*TOKENIZER_STEMS, *PROCESSOR_STEMS)
    return own_files(folder, (file for file in folder.iterdir() if file.name.partition(".")[0] in stems))


def left_by_training(folder: Path | None) -> str | None:
    """Return the name of a file that training left in a folder, or None; a model in memory has no folder."""
    if folder is None or not folder.is_dir():
        return None
    names = sorted(file.name for file in folder.iterdir())
    return next((name for name in names if any(fnmatchcase(name, pattern) for pattern in TRAINING_FILES)), None)
