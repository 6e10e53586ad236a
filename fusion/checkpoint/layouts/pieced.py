"""A model whose tensors lie in parts in files of torch's: what all layouts of several processes have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from ...dtypes import DType
from ...errors import CheckpointError
from ...file_kinds import CONFIG
from ...ref import ModelRef
from ..companions import Companion, look_beside
from ..identity import FileIdentity, identities
from ..mapped_file import MappedFile
from ..source import Source, Stored
from ..tensor_info import TensorInfo
from ..torch_archive import StoredTensor
from ..wrappers import unwrapped
from .boxes import Box, gather, tile


@dataclass(frozen=True, kw_only=True)
class Part:
    """Elements of a tensor that some archive holds.

    Attributes:
        offsets, sizes: Where in the tensor they are; of a tensor that is cut in its flattened form one number each.
        file: That holds them.
        held: Gives what holds them; asked for once they are read.
        first: The first of them in it.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    held: Callable[[], StoredTensor]
    first: int = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return elements, counted from the first that is held."""
        return self.held().read(start, stop)


@dataclass(frozen=True, kw_only=True)
class InParts:
    """A tensor in parts.

    Attributes:
        flat: Whether it is cut in its flattened form.
    """

    kind: DType
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    flat: bool = False

    @property
    def cut(self) -> tuple[int, ...]:
        """The shape in which it is cut."""
        return (prod(self.shape),) if self.flat else self.shape


def look_above(ref: ModelRef, own: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of configuration and tokenizer, and what is said of it: trainers write them one folder up.

    Args:
        own: The folder of the weights.
    """
    near = next((folder for folder in (ref.path, own.absolute().parent) if (folder / CONFIG).is_file()), None)
    if near is None or near == ref.path:
        return ref.path, ()
    return near, (f"configuration and tokenizer of `{ref}` are taken from `{near.name}/`, the folder above",)


class Pieced(Source):
    """A model of tensors in parts; a class of this kind says which they are.

    Args:
        beside: The folder of configuration and tokenizer; None where there is none.
        files: Whose tensors are read.
        others: Files that say what lies where.
    """

    is_foreign = True

    def __init__(
        self,
        ref: ModelRef,
        beside: Path | None,
        tensors: Mapping[str, InParts],
        files: Sequence[MappedFile],
        others: Sequence[Path] = (),
    ) -> None:
        self.ref, self.folder = ref, beside
        self.files = tuple(sorted((*(opened.file for opened in files), *others)))
        self._opened = {opened.file: opened for opened in files}
        config = [beside / CONFIG] if beside is not None else []
        self._identities = identities([*others, *config])
        for name, pieces in tensors.items():
            self._check(name, pieces)
        own = unwrapped(tensors)
        self.wrappers = own.wrappers
        self._inside = {own.names[name]: name for name in tensors}
        self._pieces = {own.names[name]: pieces for name, pieces in tensors.items()}
        self._boxes: dict[str, tuple[Box, ...]] = {}
        self.tensors = {
            name: TensorInfo(
                name=name,
                dtype=pieces.kind.code,
                stored=pieces.kind.code,
                shape=pieces.shape,
                file=pieces.parts[0].file if pieces.parts else None,
            )
            for name, pieces in sorted(self._pieces.items())
        }
        if not self.tensors:
            raise CheckpointError(f"`{ref}` holds no tensors of a model")

    def _check(self, name: str, pieces: InParts) -> None:
        boxes = [Box(offsets=part.offsets, sizes=part.sizes, read=part.read) for part in pieces.parts]
        if not tile(pieces.cut, boxes):
            raise CheckpointError(
                f"`{name}` {list(pieces.shape)} of `{self.ref}` is not whole: its {len(boxes)} parts overlap or leave "
                "elements out",
                hint="did every process write its part?",
            )

    def name_in_file(self, name: str) -> str:
        """Return what a tensor is called in its file."""
        return self._inside[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1`: a view where one part holds them in a row."""
        pieces, info = self._pieces[name], self.tensors[name]
        if name not in self._boxes:
            self._boxes[name] = tuple(
                Box(offsets=part.offsets, sizes=part.sizes, read=part.read, first=part.first) for part in pieces.parts
            )
        assert info.kind.numpy is not None  # others are refused when they are opened
        stop = info.num_elements if stop is None else stop
        return gather(pieces.cut, self._boxes[name], start, stop, info.kind.numpy)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of what the whole tensor was read from; parts of it lie in several places."""
        parts = self._pieces[name].parts
        if len(parts) == 1 or (start == 0 and stop is None):
            for part in parts:
                last = prod(part.sizes) if stop is None else stop
                part.held().release(part.first + start, part.first + last)

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Stored | None:
        """Return where elements lie of a tensor that is in one part."""
        parts = self._pieces[name].parts
        if len(parts) != 1:
            return None
        (part,), last = parts, self.tensors[name].num_elements if stop is None else stop
        extent = part.held().extent(part.first + start, part.first + last)
        return (part.file, *extent) if extent else None

    def mapped(self) -> dict[Path, np.ndarray]:
        """Return the bytes of each file that tensors are read from."""
        return {file: opened.content() for file, opened in self._opened.items() if opened.nbytes}

    def identities(self) -> dict[Path, FileIdentity]:
        """Return the files as they were when they were opened."""
        return self._identities | {file: opened.identity for file, opened in self._opened.items()}

    def beside(self) -> list[Companion]:
        """Return all that lies beside the weights."""
        if self.folder is None:
            return []
        found = look_beside(self.folder, self.all_files)
        return [replace(one, left="a part of the model that was read") if self._is_own(one) else one for one in found]

    def _is_own(self, companion: Companion) -> bool:
        return companion.left is not None and any(companion.file in file.parents for file in self.files)
