"""A journal: lines of JSON, each with a digest, so that what a kill or a bad disk did to one is seen."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import xxhash

_ENCODE = json.JSONEncoder(sort_keys=True).encode


def _digest(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the entries of a journal up to the first line that is not as it was written; none of a missing one."""
    try:
        *lines, _cut = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    entries: list[dict[str, Any]] = []
    for line in lines:
        digest, _, text = line.decode("utf-8", "replace").partition(" ")
        if digest != _digest(text):
            break
        entries.append(json.loads(text))
    return entries


@final
class LineFile:
    """A journal that is being written; any thread may append.

    Args:
        known: What was read of it, to go on after; what follows in the file is cut off.
    """

    def __init__(self, file: Path, known: list[dict[str, Any]]) -> None:
        self._lock = threading.Lock()
        size = sum(len(line_of(entry)) for entry in known)
        self._stream = file.open("ab")
        self._stream.truncate(size)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write an entry: a whole line at once, which a kill leaves whole or cut."""
        line = line_of(entry)
        with self._lock:
            self._stream.write(line)
            self._stream.flush()

    def sync(self) -> None:
        """Bring all entries to the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file; what `append` could not write, and said so, is tried once more in vain."""
        with suppress(OSError):
            self._stream.close()


def line_of(entry: Mapping[str, Any]) -> bytes:
    """Return an entry as it is written."""
    text = _ENCODE(entry)
    return f"{_digest(text)} {text}\n".encode()
