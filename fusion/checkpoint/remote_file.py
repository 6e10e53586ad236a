"""One safetensors file that lies elsewhere, read by ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np

from ..errors import CheckpointError
from ..places.ranges import Ranged
from .identity import FileIdentity
from .safetensors_file import checked_header
from .tensor_info import TensorInfo


@final
class RemoteFile:
    """A checked header, and elements as they are asked for.

    Args:
        file: The pointer on this disk.
    """

    tensors: Mapping[str, TensorInfo]

    def __init__(self, file: Path, ranged: Ranged) -> None:
        self.file = file
        self.identity = FileIdentity.of(file)
        self.left: list[str] = []
        self._ranged = ranged
        self.tensors, self._offsets, self.metadata = checked_header(
            file, ranged.nbytes, lambda start, stop: ranged.look(start, stop).tobytes()
        )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tensor as stored."""
        info = self.tensors[name]
        dtype = info.kind.numpy
        if dtype is None:
            raise CheckpointError(f"`{name}` in `{self.file.name}` is {info.dtype}, which sculpt cannot read")
        first, last = self._extent(name, start, info.num_elements if stop is None else stop)
        found = self._ranged.read(first, last)
        if found.ctypes.data % dtype.itemsize:  # blocks do not begin where elements do
            found = found.copy()
        return found.view(dtype)

    def foresee(self, spans: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """Have ranges of a few elements fetched at the same time."""
        self._ranged.foresee(self._extent(name, *span) for name, found in spans.items() for span in found)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Do nothing: blocks that nobody uses go by themselves."""

    def extent(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Return None: no map shows the bytes."""

    def content(self) -> None:
        """Return None."""

    def _extent(self, name: str, start: int, stop: int) -> tuple[int, int]:
        bits, first = self.tensors[name].kind.bits, self._offsets[name]
        return first + start * bits // 8, first + stop * bits // 8
