"""One weight file, of whichever format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import CheckpointError
from ..places.ranges import ranged
from .foreign import refuse_foreign_file
from .identity import FileIdentity
from .remote_file import RemoteFile
from .safetensors_file import SafetensorsFile
from .tensor_info import TensorInfo
from .torch_file import TorchFile


class TensorFile(Protocol):
    """The tensors of one file.

    Attributes:
        tensors: In file order; once a checkpoint has put its files together, those of all of them.
        left: Names of what lies beside the model's tensors in it.
    """

    file: Path
    tensors: Mapping[str, TensorInfo]
    metadata: dict[str, str]
    identity: FileIdentity
    left: list[str]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tensor as stored."""
        ...

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of the memory pages of elements that have been used."""
        ...

    def extent(self, name: str, start: int = 0, stop: int | None = None) -> tuple[int, int] | None:
        """Return where elements begin and end in `content`; None where there is none."""
        ...

    def content(self) -> np.ndarray | None:
        """Return all bytes of a file that is read through a memory map; else None."""
        ...


def open_file(file: Path) -> TensorFile:
    """Return the tensors of a weight file; only their descriptions are read yet.

    Raises:
        CheckpointError: The file is unreadable or malformed.
    """
    if file.is_dir():
        raise CheckpointError(f"`{file}` is not a regular file")
    if (elsewhere := ranged(file)) is not None:
        return RemoteFile(file, elsewhere)
    refuse_foreign_file(file)
    return SafetensorsFile(file) if file.suffix == ".safetensors" else TorchFile(file)
