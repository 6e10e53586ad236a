"""One GGUF file: a checked header, and a read-only memory map of its blocks."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import final

import numpy as np

from ...errors import CheckpointError
from ..foreign import refuse_foreign_file
from ..identity import FileIdentity
from ..pages import drop
from .header import GgufTensor, parse_header


@final
class GgufFile:
    """A file whose header is sound.

    Raises:
        CheckpointError: It cannot be read, or is truncated or malformed.
    """

    def __init__(self, file: Path) -> None:
        refuse_foreign_file(file)
        self.file, self.identity = file, FileIdentity.of(file)
        try:
            with file.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file has no map
            raise CheckpointError(f"cannot read `{file}`: {error}") from error
        self.content = np.frombuffer(self._map, np.uint8)
        self.header = parse_header(file, memoryview(self._map))
        if hasattr(mmap, "MADV_SEQUENTIAL"):  # reads ahead
            self._map.madvise(mmap.MADV_SEQUENTIAL)

    def blocks(self, tensor: GgufTensor) -> np.ndarray:
        """Return the bytes of a tensor's blocks: (blocks, bytes), a view of the file."""
        return self.content[tensor.start : tensor.start + tensor.nbytes].reshape(-1, tensor.kind.nbytes)

    def release(self, tensor: GgufTensor, first: int, last: int) -> None:
        """Let go of the pages of blocks `first … last − 1`; they stay in the page cache."""
        size = tensor.kind.nbytes
        drop(self.content, tensor.start + first * size, tensor.start + last * size)
