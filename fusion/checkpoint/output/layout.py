"""Where each output tensor will lie: every header and offset is known before a weight is read."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ...dtypes import DTYPES
from ...errors import CheckpointError, MethodError
from ..file_names import DIFFUSERS, FileNames
from ..safetensors_file import MAX_HEADER_BYTES
from ..source import Source

SHARD_BYTES = 5_000_000_000  # where the base's own files are no shards
METADATA = "__metadata__"  # the one key of a header that is no tensor


class OutputTensor(NamedTuple):
    """A tensor to be written; `origin` is the name of the file that holds it in the base, or None."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    origin: str | None

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return prod(self.shape) * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One output file: its serialised header, and the byte in the file at which each tensor begins.

    Attributes:
        file_name: Within the output, with the folder that it lies in, if any.
        packed: The header, compressed: of very many tensors it would take as much memory as they do.
        index: The name of the index that lists it; None of a file that is alone in its folder.
    """

    file_name: str
    packed: bytes
    offsets: Mapping[str, int]
    nbytes: int
    index: str | None = None

    @classmethod
    def of(
        cls, file_name: str, header: bytes, offsets: Mapping[str, int], nbytes: int, index: str | None = None
    ) -> Shard:
        """Return the file of a header."""
        return cls(file_name=file_name, packed=zlib.compress(header, 1), offsets=offsets, nbytes=nbytes, index=index)

    @property
    def header(self) -> bytes:
        """The file's first bytes, up to the first tensor."""
        return zlib.decompress(self.packed)

    def inside(self, name: str) -> str:
        """Return what a tensor is called in the file."""
        return _inside(self.file_name, name)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All output files.

    Attributes:
        place: The file of each tensor.
        writes_index: Whether the index of several shards is made here, not brought along.
    """

    shards: tuple[Shard, ...]
    place: Mapping[str, Shard]
    writes_index: bool = True

    def write_indices(self, folder: Path) -> None:
        """Write the index of each folder with several weight files; unless it is brought.

        A folder within the output has an index of its own, with names as its files have them.
        """
        for index in dict.fromkeys(shard.index for shard in self.shards if shard.index and self.writes_index):
            shards = [shard for shard in self.shards if shard.index == index]
            total = sum(shard.nbytes - min(shard.offsets.values(), default=shard.nbytes) for shard in shards)
            (folder / index).parent.mkdir(exist_ok=True)
            with (folder / index).open("w", encoding="utf-8") as stream:
                stream.writelines(_index({"total_size": total}, shards, self.place))


def _index(metadata: Mapping[str, int], shards: Sequence[Shard], place: Mapping[str, Shard]) -> Iterator[str]:
    """Yield what `json.dumps` makes of an index with an indent of 2, in a fraction of the time and the memory."""
    head, _, tail = json.dumps({"metadata": metadata, "weight_map": {}}, indent=2).rpartition("{}")
    encode = json.JSONEncoder().encode
    told = {shard.file_name: encode(shard.file_name.rpartition("/")[2]) for shard in shards}
    before = f"{head}{{\n"
    for name in sorted(name for shard in shards for name in shard.offsets):  # with the same folder in front, if any
        shard = place[name]
        yield f"{before}    {encode(shard.inside(name))}: {told[shard.file_name]}"
        before = ",\n"
    yield f"\n  }}{tail}\n"


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `5GB`, `500MB` or `2GiB`.

    Raises:
        MethodError: The text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise MethodError(f"`{text}` is not a size", hint="write it like 5GB, 500MB or 2GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))


def _shard(
    file_name: str, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], index: str | None = None
) -> Shard:
    # Wide dtypes first, so that every tensor is aligned to its element; otherwise in the given order.
    for tensor in tensors:
        if tensor.name == METADATA or not _is_unicode(tensor.name):
            raise CheckpointError(f"no safetensors file can hold a tensor called `{tensor.name}`")
    ordered = sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].bits)
    entries: dict[str, object] = {METADATA: dict(metadata)}
    position, starts = 0, {}
    for tensor in ordered:
        starts[tensor.name] = position
        entries[_inside(file_name, tensor.name)] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise MethodError(f"the header of `{file_name}` would take {len(text)} bytes of the 100 MB that it may have")
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + start for name, start in starts.items()}
    return Shard.of(file_name, header, offsets, len(header) + position, index)


def _inside(file_name: str, name: str) -> str:
    """Return what a tensor is called in a file: without the folder that the file lies in."""
    folder = file_name.rpartition("/")[0]
    return name.removeprefix(f"{folder}/") if folder else name


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True


def _by_size(tensors: Sequence[OutputTensor], max_bytes: int) -> list[list[OutputTensor]]:
    groups: list[list[OutputTensor]] = []
    filled = max_bytes
    for tensor in tensors:
        if filled + tensor.nbytes > max_bytes or not groups:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups


def make_layout(
    tensors: Sequence[OutputTensor],
    base: Source,
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
    *,
    file_name: str | None = None,
) -> Layout:
    """Return the output's files: the base's shards, or shards of at most `max_shard_bytes`.

    Where the base's files are no shards, as those of a distributed checkpoint, `SHARD_BYTES` is meant.
    Tensors that lie in no file of the base go into its last shard. `metadata` is written into each.

    Args:
        file_name: Of one file that is to hold all; None for the files of a folder.
    """
    # A digest that was written there is of other weights.
    kept = {"format": "pt", **{key: value for key, value in metadata.items() if "hash" not in key}}
    if file_name is not None:
        shards = [_shard(file_name, tensors, kept)]
    else:
        if max_shard_bytes is None and base.is_foreign:
            max_shard_bytes = SHARD_BYTES
        shards = [
            shard
            for folder, own in _by_folder(tensors, base).items()
            for shard in _shards_of(folder, own, base, max_shard_bytes, kept)
        ]
    return Layout(shards=tuple(shards), place={name: shard for shard in shards for name in shard.offsets})


def _by_folder(tensors: Sequence[OutputTensor], base: Source) -> dict[str, list[OutputTensor]]:
    """Return the tensors of each folder within the output; there is one, itself, unless the base says otherwise."""
    if "" in base.file_names:
        return {"": list(tensors)}
    found: dict[str, list[OutputTensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.name.partition("/")[0], []).append(tensor)
    return found


def _shards_of(
    folder: str,
    tensors: Sequence[OutputTensor],
    base: Source,
    max_shard_bytes: int | None,
    metadata: Mapping[str, str],
) -> list[Shard]:
    """Return the files of one folder."""
    called = base.file_names.get(folder) or FileNames(stem=DIFFUSERS)
    before = f"{folder}/" if folder else ""
    infos = [info for name, info in base.tensors.items() if name.startswith(before)]
    files = [file.name for file in dict.fromkeys(info.file for info in infos) if file is not None]
    if max_shard_bytes is not None:
        groups = _by_size(tensors, max_shard_bytes)
    else:
        by_file: dict[str | None, list[OutputTensor]] = {file: [] for file in files or [None]}
        last = next(reversed(by_file))
        for tensor in tensors:
            by_file[tensor.origin if tensor.origin in by_file else last].append(tensor)
        groups = [group for group in by_file.values() if group]
    names = [called.shard(i, len(groups)) for i in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = [called.single]
    elif max_shard_bytes is None and len(groups) == len(files) and _keeps_names(files):
        names = files
    index = before + called.index if len(groups) > 1 else None
    return [_shard(before + name, group, metadata, index) for name, group in zip(names, groups, strict=True)]


def _keeps_names(files: Sequence[str]) -> bool:
    return all(file.endswith(".safetensors") for file in files)
