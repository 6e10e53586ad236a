"""A distributed checkpoint of torch: what FSDP, accelerate, the Trainer and torchtitan save from several processes.

    .metadata        a pickle: each tensor's dtype, shape and chunks, and where each chunk lies
    __0_0.distcp …   chunks one after another, each as `torch.save` writes it

`torch.distributed.checkpoint.metadata` and `.filesystem` describe it. The pickle is read as plain values, and torch is
not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any, final

from ...dtypes import BY_TORCH_NAME, DType
from ...errors import CheckpointError, first_line
from ...ref import ModelRef
from ..folder import left_out
from ..foreign import refuse_foreign_file
from ..inert import Inert, name_of, unpickled
from ..mapped_file import MappedFile
from ..torch_archive import StoredTensor, TorchArchive
from ..torch_file import WRAPPERS
from .pieced import InParts, Part, Pieced, look_above

METADATA = ".metadata"
WITHIN = "pytorch_model_fsdp_0"  # what accelerate and the Trainer call it, in the folder of a checkpoint
PLACE = "torch.distributed.checkpoint.metadata"
TENSOR, BYTES = f"{PLACE}.TensorStorageMetadata", f"{PLACE}.BytesStorageMetadata"


def is_distributed(folder: Path) -> bool:
    """Return whether a folder holds a distributed checkpoint, or parts of one."""
    return (folder / METADATA).is_file() or next(folder.glob("*.distcp"), None) is not None


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Where a chunk lies."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What the metadata says of one tensor; `path` are the keys of the dicts that it was saved in."""

    path: tuple[str, ...]
    kind: DType
    shape: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...], _Chunk], ...]


@final
class DistributedCheckpoint(Pieced):
    """A folder with `.metadata` and `*.distcp`, or one that holds such a folder of accelerate's.

    Raises:
        CheckpointError: It is damaged, or holds no model.
    """

    def __init__(self, ref: ModelRef) -> None:
        own = ref.path if is_distributed(ref.path) else ref.path / WITHIN
        beside, above = look_above(ref, own)
        metadata = own / METADATA
        if not metadata.is_file():
            raise CheckpointError(
                f"`{own}` has no `{METADATA}`, which says what its files hold",
                hint="it is written last: was the save cut off?",
            )
        entries, others = _entries(metadata)
        model, left = _model_of(ref, entries)
        names = dict.fromkeys(chunk.file for entry in model.values() for _, _, chunk in entry.chunks)
        files = {name: _opened(own, name) for name in names}
        held = cache(partial(_held, files))
        tensors = {
            name: InParts(
                kind=entry.kind,
                shape=entry.shape,
                parts=tuple(
                    Part(
                        offsets=offsets,
                        sizes=sizes,
                        file=files[chunk.file].file,
                        held=partial(held, chunk, sizes, entry.kind),
                    )
                    for offsets, sizes, chunk in entry.chunks
                ),
            )
            for name, entry in model.items()
        }
        for name, entry in model.items():
            for _, _, chunk in entry.chunks:
                if chunk.offset + chunk.length > files[chunk.file].nbytes:
                    raise CheckpointError(
                        f"`{files[chunk.file].file}` is truncated: it ends before a part of `{name}`",
                        hint="is the copy complete?",
                    )
        super().__init__(ref, beside, tensors, list(files.values()), [metadata])
        left = list(dict.fromkeys([*left, *others]))
        self.said = (*([left_out(left, f"`{own.name}`")] if left else []), *above)


def _entries(file: Path) -> tuple[list[_Entry], list[str]]:
    """Return the tensors that the metadata describes, and the names of what else was saved."""
    refuse_foreign_file(file)
    try:
        content = unpickled(file.read_bytes())
        described, planned = content.field("state_dict_metadata"), content.field("planner_data")
        places = {
            (place.field("fqn"), place.field("offset")): info
            for place, info in (content.field("storage_data") or {}).items()
        }
        entries, others = [], []
        for name, value in described.items():
            keys = planned.get(name, (name,)) if isinstance(planned, Mapping) else (name,)
            if not isinstance(keys, tuple) or not keys or not all(isinstance(key, (str, int)) for key in keys):
                raise ValueError(f"`{name}` was saved under something that is no key")
            path = tuple(map(str, keys))
            if name_of(value) == TENSOR:
                entries.append(_entry(file, name, path, value, places))
            else:
                others.append(path[0])
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise CheckpointError(f"cannot read `{file}`: {first_line(error)}") from error
    return entries, others


def _entry(file: Path, name: str, path: tuple[str, ...], value: Inert, places: Mapping[Any, Inert]) -> _Entry:
    properties = value.field("properties").state
    dtype = properties["dtype"] if isinstance(properties, Mapping) else properties[0]
    torch_name = (name_of(dtype) or "").removeprefix("torch.")
    kind = BY_TORCH_NAME.get(torch_name)
    if kind is None or kind.numpy is None:
        raise CheckpointError(f"`{name}` in `{file}` is {torch_name}, which sculpt cannot read")
    chunks = []
    for chunk in value.field("chunks"):
        offsets, sizes = (_counts(chunk.field(key)) for key in ("offsets", "sizes"))
        if not prod(sizes):
            continue
        found = places.get((name, offsets))
        if found is None:
            raise CheckpointError(f"`{file}` does not say where `{name}` lies from {list(offsets)} on")
        if found.field("transform_descriptors"):
            raise CheckpointError(
                f"`{name}` in `{file.parent}` is stored in another form ({found.field('transform_descriptors')})"
            )
        where = found.field("relative_path")
        if not isinstance(where, str) or Path(where).name != where:
            raise CheckpointError(f"`{file}` places `{name}` outside its folder, in `{where}`")
        offset, length = _counts((found.field("offset"), found.field("length")))
        chunks.append((offsets, sizes, _Chunk(file=where, offset=offset, length=length)))
    return _Entry(path=path, kind=kind, shape=_counts(value.field("size")), chunks=tuple(chunks))


def _counts(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values} are no sizes")
    return tuple(values)


def _model_of(ref: ModelRef, entries: list[_Entry]) -> tuple[dict[str, _Entry], list[str]]:
    """Return the model's tensors by name, and the keys of what else lies in the checkpoint.

    A trainer saves one dict for the model and one for the optimiser; some save the model's tensors alone.
    """
    groups: dict[tuple[str, ...], dict[str, _Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.path[:-1], {})[entry.path[-1]] = entry
    named = [path for path in groups if path and path[-1] in WRAPPERS]
    chosen = named or [path for path in groups if not path] or list(groups)
    if len(chosen) != 1:
        told = ", ".join(f"`{'.'.join(path)}`" for path in chosen[:5])
        raise CheckpointError(
            f"`{ref}` holds {'several models' if chosen else 'no tensors'}{': ' if told else ''}{told}",
            hint="save the model's own state dict, under `model`" if chosen else None,
        )
    left = (path[0] if path else name for path in groups if path != chosen[0] for name in groups[path])
    return groups[chosen[0]], list(dict.fromkeys(left))


def _opened(folder: Path, name: str) -> MappedFile:
    file = folder / name
    if not file.is_file():
        raise CheckpointError(
            f"`{file}` is missing, and `{METADATA}` names it", hint="every process writes files: copy all of them"
        )
    refuse_foreign_file(file)
    return MappedFile(file)


def _held(files: Mapping[str, MappedFile], chunk: _Chunk, sizes: tuple[int, ...], kind: DType) -> StoredTensor:
    """Return what a chunk holds.

    Raises:
        CheckpointError: It is not what the metadata says.
    """
    file = files[chunk.file]
    found = TorchArchive(file, chunk.offset, chunk.offset + chunk.length).content
    if not isinstance(found, StoredTensor) or found.shape != sizes or found.kind != kind:
        told = f"{found.kind.torch} {list(found.shape)}" if isinstance(found, StoredTensor) else "no tensor"
        raise CheckpointError(
            f"`{file.file}` holds {told} at byte {chunk.offset}, and `{METADATA}` says {kind.torch} {list(sizes)}"
        )
    return found
