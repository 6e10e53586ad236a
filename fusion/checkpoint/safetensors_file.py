"""One safetensors file: a header that is checked before anything is believed, and a memory map.

Format: https://github.com/huggingface/safetensors#format. What is wrong is told by the tensor's name; what passes is
shown to the reference implementation too, whose word is the last, so that nothing is fused that others cannot open. One
thing it accepts is refused: a name that appears twice, since nobody can say which of the two is meant.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TypeGuard, final

import numpy as np
from safetensors import safe_open

from ..dtypes import DTYPES
from ..errors import CheckpointError, first_line
from .foreign import refuse_pipe
from .mapped_file import MappedFile
from .tensor_info import TensorInfo

MAX_HEADER_BYTES = 100_000_000
FIELDS = ("dtype", "shape", "data_offsets")  # in the order in which an entry may list their values


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"`{next(key for key in keys if keys.count(key) > 1)}` appears twice")
    return found


def _are_counts(values: list[object]) -> TypeGuard[list[int]]:
    return all(type(value) is int and value >= 0 for value in values)  # a `bool` is an `int` too


@lru_cache
def _once(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that was seen before, where it equals this one."""
    return shape


def _parse_entry(file: Path, name: str, entry: object) -> tuple[TensorInfo, int]:
    """Return a tensor and the first of its bytes, counted from the end of the header."""
    if isinstance(entry, list) and len(entry) == len(FIELDS):
        entry = dict(zip(FIELDS, entry, strict=True))
    if not isinstance(entry, dict):
        raise CheckpointError(f"`{file}` describes `{name}` by something that is not an object")
    code, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(code, str) or code not in DTYPES:
        raise CheckpointError(f"`{name}` in `{file}` has the unknown dtype `{code}`")
    if not isinstance(shape, list) or not _are_counts(shape):
        raise CheckpointError(f"`{name}` in `{file}` has the impossible shape {shape}")
    if not isinstance(span, list) or len(span) != 2 or not _are_counts(span) or span[0] > span[1]:
        raise CheckpointError(f"`{name}` in `{file}` has the impossible data offsets {span}")
    nbytes, expected_bits = span[1] - span[0], prod(shape) * DTYPES[code].bits
    if nbytes * 8 != expected_bits:
        raise CheckpointError(
            f"`{name}` in `{file}` is {code} {shape}, which takes {expected_bits // 8} bytes, but has {nbytes}"
        )
    # Many models, and their indices, have these names and codes: each is held once.
    name, code = sys.intern(name), DTYPES[code].code
    return TensorInfo(name=name, dtype=code, stored=code, shape=_once(tuple(shape)), file=file), span[0]


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    """Return the tensors of a safetensors file in file order, the first byte of each in the file, and the metadata.

    Raises:
        CheckpointError: The file is unreadable, truncated or malformed.
    """
    refuse_pipe(file)
    try:
        with file.open("rb") as stream:
            found = checked_header(file, file.stat().st_size, lambda start, stop: stream.read(stop - start))
    except OSError as error:
        raise CheckpointError(f"cannot read `{file}`: {error.strerror or error}") from error
    _ask_reference(file)
    return found


def checked_header(
    file: Path, size: int, read: Callable[[int, int], bytes]
) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str]]:
    """Return what `read_header` does, wherever the bytes are.

    Args:
        size: Bytes of the whole file.
        read: Gives bytes `start … stop − 1`; it is asked for the first 8, then for the header behind them.

    Raises:
        CheckpointError: It is truncated or malformed.
    """
    prefix = read(0, min(8, size))
    header_bytes = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or header_bytes > size - 8:
        raise CheckpointError(f"`{file}` is truncated: {size} bytes do not hold its header")
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(f"`{file}` claims a header of {header_bytes} bytes, over the limit of 100 MB")
    infos, offsets, metadata, end = parse_header(file, prefix + read(8, 8 + header_bytes))
    if end != size:
        state = "is truncated" if size < end else "has trailing bytes"
        raise CheckpointError(f"`{file}` {state}: the header promises {end} bytes, the file has {size}")
    return infos, offsets, metadata


def parse_header(file: Path, content: bytes) -> tuple[dict[str, TensorInfo], dict[str, int], dict[str, str], int]:
    """Return what `read_header` does of a header, its length in front included, and how long its file is to be.

    Raises:
        CheckpointError: It is malformed.
    """
    try:
        header = json.loads(content[8:].decode("utf-8"), object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{file}` has a malformed header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"`{file}` has a malformed header: not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"`{file}` has malformed metadata: not a map of strings")

    found = [_parse_entry(file, name, entry) for name, entry in header.items()]
    found.sort(key=lambda pair: (pair[1], pair[0].nbytes))
    offsets, end = {}, len(content)
    for info, start in found:
        if len(content) + start != end:
            raise CheckpointError(f"`{info.name}` in `{file}` overlaps its neighbour or leaves a hole before it")
        offsets[info.name] = end
        end += info.nbytes
    return {info.name: info for info, _ in found}, offsets, metadata, end


def _ask_reference(file: Path) -> None:
    try:
        with safe_open(file, framework="np"):
            pass
    except Exception as error:  # of its own, or of the file system
        raise CheckpointError(f"`{file}` is refused by the safetensors library: {first_line(error)}") from error


@final
class SafetensorsFile:
    """A checked header and, from the first read on, a read-only memory map."""

    tensors: Mapping[str, TensorInfo]

    def __init__(self, file: Path) -> None:
        self.file = file
        self._mapped = MappedFile(file)
        self.identity = self._mapped.identity
        self.left: list[str] = []
        self.tensors, self._offsets, self.metadata = read_header(file)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tensor as stored: a view of the file, not a copy."""
        info = self.tensors[name]
        dtype = info.kind.numpy
        if dtype is None:
            raise CheckpointError(f"`{name}` in `{self.file}` is {info.dtype}, which sculpt cannot read")
        stop = info.num_elements if stop is None else stop
        return self._mapped.array(self._offsets[name] + start * dtype.itemsize, stop - start, dtype)

    def content(self) -> np.ndarray:
        """Return all bytes of the file, as a view."""
        return self._mapped.content()

    def extent(self, name: str, start: int = 0, stop: int | None = None) -> tuple[int, int]:
        """Return where elements begin and end in the file."""
        info, first = self.tensors[name], self._offsets[name]
        # In bits, as the elements of some dtypes are no whole bytes.
        bits = info.kind.bits
        last = info.num_elements if stop is None else stop
        return first + start * bits // 8, first + last * bits // 8

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of the memory pages of elements that have been used; they stay in the page cache."""
        self._mapped.release(*self.extent(name, start, stop))
