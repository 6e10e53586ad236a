"""Files that stand for others that lie elsewhere: where, how many bytes, and in which state; read by ranges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISREG
from typing import final

from ..cache import write_whole
from .settings import all_places

MARK = b'{"sculpt-pointer": '
MOST = 4096  # no pointer is longer
VERSION = 1


@final
@dataclass(frozen=True, kw_only=True)
class Pointer:
    """A file that lies elsewhere.

    Attributes:
        place: Its URL; of one on the hub `hf://org/model@commit/name`.
        etag: What changes with its content; of a file of a commit nothing does.
    """

    place: str
    nbytes: int
    etag: str

    def write(self, file: Path) -> None:
        """Write the pointer, whole or not at all."""
        write_whole(file, json.dumps({"sculpt-pointer": VERSION, **asdict(self)}).encode())


def read_pointer(file: Path) -> Pointer | None:
    """Return what a file stands for, or None where it is no pointer.

    Only sculpt's own cache has pointers: what looks like one in anybody's folder must not send requests anywhere.
    """
    try:
        found = file.stat()
        if not S_ISREG(found.st_mode) or found.st_size > MOST:
            return None
        if not file.resolve().is_relative_to(all_places().resolve()):
            return None
        with file.open("rb") as stream:
            text = stream.read(MOST)
    except OSError:
        return None
    if not text.startswith(MARK):
        return None
    content = json.loads(text)
    return Pointer(place=content["place"], nbytes=content["nbytes"], etag=content["etag"])


def nbytes_of(file: Path) -> int:
    """Return the bytes of a file, or of the one that it stands for."""
    pointer = read_pointer(file)
    return file.stat().st_size if pointer is None else pointer.nbytes


def make_shell(
    where: Path, pointers: Mapping[str, Pointer], others: Mapping[str, int], content: Callable[[str], bytes]
) -> None:
    """Fill a folder with pointers, and with the files beside them as they are; what is there already stays.

    Args:
        others: Sizes by name.
        content: Returns a file's bytes.
    """
    for name, nbytes in others.items():
        file = where / name
        if not file.is_file() or file.stat().st_size != nbytes:
            write_whole(file, content(name))
    for name, pointer in pointers.items():
        if read_pointer(where / name) != pointer:
            pointer.write(where / name)
