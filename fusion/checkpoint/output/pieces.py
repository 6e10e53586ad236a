"""What several processes each have of one page of a file: kept apart, and written by the first of them at the end.

On a network file system a machine may write back a whole page of which it changed a part, and with it what another has
written there meanwhile. So no page is written by two.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import final

import numpy as np

_HEAD = struct.Struct("<IQQ")  # bytes of the file's name, place in the file, bytes of the piece


@final
class Pieces:
    """The pieces of one process, in a file of its own."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._stream = file.open("wb")

    def put(self, name: str, position: int, data: np.ndarray) -> None:
        """Keep bytes that belong at a place of a file."""
        own = name.encode()
        with self._lock:
            self._stream.write(_HEAD.pack(len(own), position, data.size) + own)
            self._stream.write(data.data)

    def close(self) -> None:
        """Bring all of them to the disk."""
        if not self._stream.closed:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()


def write_pieces(pieces: Path, folder: Path) -> None:
    """Write the pieces of a process to the files of a folder, which are there."""
    with_place: dict[str, int] = {}
    try:
        for name, position, content in _read(pieces):
            if name not in with_place:
                with_place[name] = os.open(folder / name, os.O_WRONLY)
            os.pwrite(with_place[name], content, position)
        for descriptor in with_place.values():
            os.fsync(descriptor)
    finally:
        for descriptor in with_place.values():
            os.close(descriptor)


def _read(pieces: Path) -> Iterator[tuple[str, int, bytes]]:
    with pieces.open("rb") as stream:
        while head := stream.read(_HEAD.size):
            length, position, size = _HEAD.unpack(head)
            yield stream.read(length).decode(), position, stream.read(size)
