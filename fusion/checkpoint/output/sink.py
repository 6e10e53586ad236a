"""An output: takes tensors, or parts of them, in any order and from any thread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, final

import numpy as np

from ...dtypes import DTYPES
from .layout import OutputTensor


class Sink(ABC):
    """Where the tensors of a run go.

    Attributes:
        finished: What `finish` was told of the tensors that an interrupted run left whole, by name.
    """

    finished: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    @abstractmethod
    def room(self, name: str, start: int, stop: int, dtype: np.dtype) -> AbstractContextManager[np.ndarray]:
        """Give memory for elements `start … stop − 1` of a tensor; the sink takes them once the block is left."""

    def explain(self, name: str, tile: Any, wanted: Any) -> None:
        """Take note that what this thread has room for is what a `Map` makes of a `RawTile`; most sinks do not mind."""
        del name, tile, wanted

    def measured(self, name: str, curvatures: Any) -> None:
        """Take what was measured of a tensor in each model, before any of it is written."""
        del name, curvatures

    def finish(self, name: str, entry: Mapping[str, Any]) -> None:
        """Note that a tensor is whole; `finished` gives `entry` back to a run that resumes."""
        del name, entry

    def file_of(self, name: str) -> str:
        """Return the file that a tensor goes to: what goes to one file had best come in the file's order."""
        del name
        return ""

    def read(self, name: str, first_byte: int, nbytes: int) -> bytes:
        """Return bytes of a tensor in `finished`, to check what an interrupted run left; none where nothing is."""
        del name, first_byte, nbytes
        return b""


@final
class MemorySink(Sink):
    """Keeps every tensor in memory.

    Attributes:
        tensors: By name, in the output's dtype and shape.
    """

    def __init__(self, outputs: Iterable[OutputTensor]) -> None:
        self.tensors = {output.name: np.empty(output.shape, DTYPES[output.dtype].numpy) for output in outputs}

    @contextmanager
    def room(self, name: str, start: int, stop: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Give the tensor's own memory."""
        yield self.tensors[name].reshape(-1)[start:stop].view(dtype)


@final
class FiguresSink(Sink):
    """Keeps no tensor: for runs that want their records alone."""

    @contextmanager
    def room(self, name: str, start: int, stop: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Give memory that is let go of when the block is left."""
        del name
        yield np.empty(stop - start, dtype)
