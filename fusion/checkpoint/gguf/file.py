"""One GGUF file: a checked header, and a read-only memory map of its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np

from ..foreign import refuse_foreign_file
from ..mapped_file import MappedFile
from .header import GgufTensor, parse_header


@final
class GgufFile:
    """A file whose header is sound.

    Raises:
        CheckpointError: It cannot be read, or is truncated or malformed.
    """

    def __init__(self, file: Path) -> None:
        refuse_foreign_file(file)
        self.file, self._mapped = file, MappedFile(file)
        self.identity = self._mapped.identity
        self.header = parse_header(file, memoryview(self._mapped.mapped()))

    def blocks(self, tensor: GgufTensor) -> np.ndarray:
        """Return the bytes of a tensor's blocks: (blocks, bytes), a view of the file."""
        found = self._mapped.content()[tensor.start : tensor.start + tensor.nbytes]
        return found.reshape(-1, tensor.kind.nbytes)

    def release(self, tensor: GgufTensor, first: int, last: int) -> None:
        """Let go of the pages of blocks `first … last − 1`; they stay in the page cache."""
        size = tensor.kind.nbytes
        self._mapped.release(tensor.start + first * size, tensor.start + last * size)
