"""What `torch.save` writes, read without torch: a zip archive of a pickle and, uncompressed, the storages it names.

https://pytorch.org/docs/stable/notes/serialization.html. An archive may lie within a larger file, as each item of a
distributed checkpoint does. The pickle is read as plain values (`inert`), a storage through a memory map.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np

from ..dtypes import BY_TORCH_NAME, DTYPES, DType
from ..errors import CheckpointError
from .foreign import refuse_foreign_file, torch_error
from .inert import Inert, name_of, unpickled
from .mapped_file import MappedFile

STORAGES = {  # classes of storages that have a dtype, as pickles name them
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
}  # fmt: skip
LOCAL_HEADER = 30  # bytes of a zip entry's own header, before its name
PARAMETERS = ("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.Tensor", "torch._tensor.Tensor")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor as a pickle describes it: elements of a storage.

    Attributes:
        first: Byte of the file at which its first element lies.
        strides: In elements.
    """

    file: MappedFile
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: DType

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow one another in the file."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return elements `start … stop − 1` of the flattened tensor: a view where they follow one another."""
        dtype = self.kind.numpy
        assert dtype is not None  # others are refused when they are opened
        if start == stop or not self.num_elements:
            return np.empty(0, dtype)
        if self.is_contiguous:
            return self.file.array(self.first + start * dtype.itemsize, stop - start, dtype)
        reach = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        flat = self.file.array(self.first, reach, dtype)
        strides = tuple(stride * dtype.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False).flat[start:stop]

    def extent(self, start: int, stop: int) -> tuple[int, int] | None:
        """Return where elements begin and end in the file; None where they do not follow one another."""
        size = self.kind.bits // 8
        return (self.first + start * size, self.first + stop * size) if self.is_contiguous else None

    def release(self, start: int, stop: int) -> None:
        """Let go of the memory pages of elements that have been used."""
        extent = self.extent(start, stop)
        if extent is not None:
            self.file.release(*extent)


@dataclass(frozen=True, kw_only=True)
class _Storage:
    first: int
    nbytes: int
    kind: DType | None  # None: of bytes, whose dtype the tensor says


@final
class _Window(io.RawIOBase):
    """A part of a mapped file, as a file."""

    def __init__(self, file: MappedFile, start: int, stop: int) -> None:
        self._bytes, self._size, self._at = memoryview(file.mapped())[start:stop], stop - start, 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that any place of it can be."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise OSError(22, "before the first byte")
        self._at = at
        return at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read what fits."""
        found = self._bytes[self._at : self._at + len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


def is_archive(file: MappedFile, start: int = 0) -> bool:
    """Return whether a zip archive begins at a byte of a file."""
    return file.nbytes > start + 4 and bytes(file.content()[start : start + 4]) == b"PK\x03\x04"


def open_archive(file: Path) -> tuple[MappedFile, Any]:
    """Return a file that is an archive, and what was saved in it.

    Raises:
        CheckpointError: It is none, or damaged.
    """
    refuse_foreign_file(file)
    opened = MappedFile(file)
    if not opened.nbytes or not is_archive(opened):
        raise CheckpointError(f"`{file}` is no file of torch's, or is damaged")
    return opened, TorchArchive(opened).content


@final
class TorchArchive:
    """One archive.

    Args:
        start, stop: The bytes of the file that it lies in.

    Attributes:
        content: What was saved: plain values, `StoredTensor` and `Inert`.

    Raises:
        CheckpointError: It is damaged, compressed, or no archive of torch's.
    """

    def __init__(self, file: MappedFile, start: int = 0, stop: int | None = None) -> None:
        self._file, self._start, self._stop = file, start, file.nbytes if stop is None else stop
        try:
            with zipfile.ZipFile(_Window(file, start, self._stop)) as archive:
                self._entries = {entry.filename: entry for entry in archive.infolist()}
                self._root = self._root_of()
                self.content = unpickled(self._pickle(archive), self._known(), self._storage)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle fails in any way it likes
            raise torch_error(file.file, error) from error

    def _root_of(self) -> str:
        packed = next((e for e in self._entries.values() if e.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None:
            raise CheckpointError(
                f"`{self._file.file}` is compressed (`{packed.filename}`), which files of torch never are"
            )
        found = next((name for name in self._entries if name == "data.pkl" or name.endswith("/data.pkl")), None)
        if found is None:
            raise CheckpointError(f"`{self._file.file}` is a zip archive, but not one that `torch.save` writes")
        root = found.removesuffix("data.pkl")
        if root + "constants.pkl" in self._entries:
            raise CheckpointError(f"`{self._file.file}` is a program of TorchScript, not a file of tensors")
        return root

    def _pickle(self, archive: zipfile.ZipFile) -> bytes:
        order = self._entries.get(self._root + "byteorder")
        if order is not None and archive.read(order) != b"little":
            raise CheckpointError(f"`{self._file.file}` was written on a machine with the other byte order")
        return archive.read(self._root + "data.pkl")

    def _known(self) -> Mapping[str, Any]:
        return {
            "torch._utils._rebuild_tensor": lambda storage, offset, shape, strides: self._tensor(
                storage, offset, shape, strides
            ),
            "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: self._tensor(
                storage, offset, shape, strides
            ),
            "torch._utils._rebuild_tensor_v3": lambda storage, offset, shape, strides, _grad, _hooks, dtype, *_: (
                self._tensor(storage, offset, shape, strides, dtype)
            ),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
            "torch._tensor._rebuild_from_type_v2": _rebuilt,
        }

    def _storage(self, pid: Any) -> _Storage:
        """Return where a storage lies that the pickle names."""
        kind, of, key, _, count = pid
        name = (name_of(of) or "").rpartition(".")[2].removesuffix("Storage")
        entry = self._entries.get(f"{self._root}data/{key}")
        if kind != "storage" or entry is None or name not in (*STORAGES, "Untyped"):
            raise CheckpointError(f"`{self._file.file}` names the storage `{key}`, which it does not hold")
        first = self._start + entry.header_offset
        header = bytes(self._file.content()[first : first + LOCAL_HEADER])
        first += LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        found = BY_TORCH_NAME[STORAGES[name]] if name in STORAGES else None
        size = 1 if found is None else found.bits // 8
        if header[:4] != b"PK\x03\x04" or first + entry.file_size > self._stop or count * size > entry.file_size:
            raise CheckpointError(f"`{self._file.file}` is damaged: its storage `{key}` is shorter than it says")
        return _Storage(first=first, nbytes=entry.file_size, kind=found)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any = None) -> Any:
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without a storage")
        said = (name_of(dtype) or "").removeprefix("torch.")
        kind = storage.kind if dtype is None else BY_TORCH_NAME.get(said)
        if kind is None or kind.numpy is None:
            return Inert(name_of(dtype) or "bytes")
        counts = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a tensor of an impossible shape")
        reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if prod(shape) and (offset + reach) * kind.bits // 8 > storage.nbytes:
            raise ValueError("a tensor reaches beyond its storage")
        first = storage.first + offset * kind.bits // 8
        return StoredTensor(file=self._file, first=first, shape=tuple(shape), strides=tuple(strides), kind=kind)


def _rebuilt(make: Any, of: Any, args: Any, _state: Any) -> Any:
    """Return a tensor of a class of its own, where that class adds nothing to what a tensor is."""
    return make(*args) if name_of(of) in PARAMETERS else Inert(name_of(of) or "a tensor", args)


assert set(STORAGES.values()) <= {kind.torch for kind in DTYPES.values()}
