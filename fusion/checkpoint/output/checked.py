"""Intermediate files, with a digest that is kept elsewhere: what does not read back as it was written is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from ...errors import OutputError
from .workspace import told


class DamagedError(OutputError):
    """An intermediate file is not what was written to it."""


def digest_of(content: np.ndarray) -> str:
    """Return the digest of an array's bytes."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(content).reshape(-1).view(np.uint8).data)


def write_checked(file: Path, content: np.ndarray) -> str:
    """Write an array's bytes to a new file, and return their digest.

    Raises:
        OutputError: The disk is full, or fails.
    """
    flat = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
    with told(file), file.open("wb") as stream:
        stream.write(flat.data)
    return digest_of(flat)


def read_checked(file: Path, digest: str) -> np.ndarray:
    """Return the bytes of a file.

    Raises:
        DamagedError: They have another digest, or there is no such file.
    """
    try:
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DamagedError(f"`{file}` cannot be read back: {error.strerror or error}") from error
    if digest_of(content) != digest:
        raise DamagedError(f"`{file}` does not read back as it was written")
    return content
