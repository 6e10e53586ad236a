"""The header of a GGUF file, checked before anything is believed: what the file says of itself, and where tensors lie.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every length is held against the bytes that are
there before it is used, so no header has more memory taken than the file has bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

from ...errors import CheckpointError
from .blocks import TYPES, UNREAD, BlockType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where a file says nothing of it
MAX_DIMENSIONS = 8  # llama.cpp has four
MAX_DEPTH = 4  # of arrays within arrays
MAX_LENGTH = 1 << 24  # of an array; the largest vocabulary is a fiftieth of it
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@final
@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of a file: `shape` has the fastest dimension last, `start` is its first byte in the file."""

    name: str
    kind: BlockType
    shape: tuple[int, ...]
    start: int

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.num_elements // self.kind.elements * self.kind.nbytes


@final
@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a file says: `said` by key, tensors by name in file order, and the bytes that the header takes."""

    file: Path
    said: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    content: memoryview

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model's architecture."""
        return str(self.said.get("general.architecture", ""))


def parse_header(file: Path, content: memoryview) -> GgufHeader:
    """Return the header of a file's bytes.

    Raises:
        CheckpointError: It is truncated or malformed, or has tensors of a type that nothing reads.
    """
    reader = _Reader(file, content)
    if bytes(content[:4]) != MAGIC:
        raise CheckpointError(f"`{file}` is no GGUF file: it does not begin with `GGUF`")
    reader.at = 4
    version = reader.number("I")
    if version not in VERSIONS:
        what = "in big-endian order" if version >> 16 else f"of version {version}"
        raise CheckpointError(f"`{file}` is a GGUF file {what}, which sculpt cannot read")
    num_tensors, num_said = reader.number("Q"), reader.number("Q")
    said: dict[str, Any] = {}
    for _ in range(num_said):
        key = reader.string()
        if key in said:
            raise CheckpointError(f"`{file}` says `{key}` twice")
        said[key] = reader.value(reader.number("I"))
    alignment = said.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"`{file}` has the impossible `general.alignment` {alignment!r}")
    found: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        tensor = _tensor(reader)
        if tensor.name in found:
            raise CheckpointError(f"`{tensor.name}` appears twice in `{file}`")
        found[tensor.name] = tensor
    end = -(-reader.at // alignment) * alignment
    tensors = {
        name: GgufTensor(name=name, kind=tensor.kind, shape=tensor.shape, start=end + tensor.start)
        for name, tensor in found.items()
    }
    for tensor in tensors.values():
        if tensor.start + tensor.nbytes > len(content):
            raise CheckpointError(
                f"`{file}` is truncated: `{tensor.name}` ends at byte {tensor.start + tensor.nbytes}, the file has "
                f"{len(content)}",
                hint="is the download complete?",
            )
    return GgufHeader(file=file, said=said, tensors=tensors, content=content[: reader.at])


def _tensor(reader: _Reader) -> GgufTensor:
    """Return a tensor whose `start` counts from where tensors begin."""
    name = reader.string()
    dimensions = reader.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise CheckpointError(f"`{name}` in `{reader.file}` has {dimensions} dimensions")
    shape = tuple(reversed([reader.number("Q") for _ in range(dimensions)])) or (1,)
    number, start = reader.number("I"), reader.number("Q")
    kind = TYPES.get(number)
    if kind is None:
        what = UNREAD.get(number, f"the unknown type {number}")
        raise CheckpointError(
            f"`{name}` in `{reader.file}` is stored as {what}, which sculpt cannot read",
            hint=f"read are {', '.join(kind.name for kind in TYPES.values())}",
        )
    if shape[-1] % kind.elements:
        raise CheckpointError(
            f"`{name}` in `{reader.file}` has the impossible shape {list(shape)}: {kind.name} stores blocks of "
            f"{kind.elements}"
        )
    return GgufTensor(name=name, kind=kind, shape=shape, start=start)


class _Reader:
    """Bytes that are read one after the other."""

    def __init__(self, file: Path, content: memoryview) -> None:
        self.file, self._content, self.at = file, content, 0

    def _room(self, nbytes: int) -> None:
        if nbytes > len(self._content) - self.at:
            raise CheckpointError(f"`{self.file}` is truncated: {len(self._content)} bytes do not hold its header")

    def number(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        self._room(size)
        (found,) = struct.unpack_from(f"<{code}", self._content, self.at)
        self.at += size
        return found

    def string(self) -> str:
        length = self.number("Q")
        self._room(length)
        text = bytes(self._content[self.at : self.at + length])
        self.at += length
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"`{self.file}` has a malformed header: a text is not UTF-8") from error

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY or depth == MAX_DEPTH:
            raise CheckpointError(f"`{self.file}` has a malformed header: a value of the unknown type {kind}")
        inside, length = self.number("I"), self.number("Q")
        if length > MAX_LENGTH:
            raise CheckpointError(f"`{self.file}` has a malformed header: an array of {length} values")
        if inside in SCALARS:
            size = struct.calcsize(f"<{SCALARS[inside]}")
            self._room(length * size)
            found = struct.unpack_from(f"<{length}{SCALARS[inside]}", self._content, self.at)
            self.at += length * size
            return list(found)
        self._room(8 * length)  # no text and no array is shorter
        return [self.value(inside, depth + 1) for _ in range(length)]
