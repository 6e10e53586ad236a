"""A base and a patch in, the model out: the very files that the patch was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import final

from ..checkpoint import find_model
from ..checkpoint.output.folder_sink import FolderSink
from ..checkpoint.output.guard import CHECKPOINT, refuse_output
from ..checkpoint.output.layout import Layout, OutputTensor, Shard, make_layout
from ..checkpoint.safetensors_file import parse_header
from ..checkpoint.source import reading
from ..device import all_cores
from ..errors import CheckpointError
from ..progress import Progress, silent
from ..ref import ModelRef
from .forms import FRAME, form_of, num_words
from .frames import in_order
from .source import PatchedSource

BUFFERS = 32  # frames: as many are decoded while the disk syncs, which it does every 256 MB
# What is made of a packed fine-tune is its very files, none of which tells that sculpt wrote it.
APPLIED = replace(CHECKPOINT, hint="a folder without a manifest may be your own: remove it first if it can go")


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What was written: how many tensors of how many bytes, and whether the files are those that were packed."""

    tensors: int
    nbytes: int
    is_exact: bool


def unpack(
    patched: ModelRef,
    *,
    output: Path,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Applied:
    """Write the model that a patch makes of its base, file by file as it was packed.

    Args:
        patched: The patch, with its base before it.
        output: A folder that does not exist yet.

    Raises:
        OtherBaseError: The base is another than the patch was made from; the sentence names the tensor.
        SculptError: Nothing is left under the output's name.
    """
    refuse_output(output, [patched], APPLIED, overwrite=overwrite)
    source = PatchedSource(find_model(patched))
    with reading([source]):
        layout = layout_of(source)
    files = {str(file): identity.as_json() for file, identity in source.identities().items()}
    facts = [source.patch.file.metadata, sorted(files.items())]
    threads = threads or all_cores()
    sink = FolderSink(
        output,
        layout,
        fingerprint=hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest(),
        made_by="apply",
        new_digest=None,  # each frame is compared with its digest before it is written
        overwrite=overwrite,
        buffers=max(BUFFERS, 2 * threads),
    )
    with reading([source]), sink:
        _Applying(source, sink, progress).run(threads)
        source.refuse_changed()
        sink.commit(source.write_files)
    return Applied(
        tensors=len(layout.place),
        nbytes=sum(shard.nbytes for shard in layout.shards),
        is_exact=bool(source.patch.contents.shards),
    )


def layout_of(source: PatchedSource) -> Layout:
    """Return the weight files that a patch makes: as they were, or where the model had no safetensors files, new ones.

    Raises:
        CheckpointError: A header that the patch holds is damaged, or of other tensors.
    """
    contents, patch, tensors = source.patch.contents, source.patch, _tensors_of(source)
    if not contents.shards:
        return make_layout(list(tensors.values()), source, metadata=source.metadata)
    shards, place = [], {}
    for file_name in contents.shards:
        header = patch.header(file_name)
        infos, offsets, _, nbytes = parse_header(patch.path, header)
        for name, info in infos.items():
            own = tensors.get(name)
            if own is None or name in place or (own.dtype, own.shape) != (info.dtype, info.shape):
                raise patch.damaged(file_name, f"it has another `{name}` than the contents")
        shards.append(Shard.of(file_name, header, offsets, nbytes))
        place |= dict.fromkeys(infos, shards[-1])
    if len(place) < len(tensors):
        raise CheckpointError(f"no weight file of `{patch.path}` has `{min(tensors.keys() - place.keys())}`")
    return Layout(shards=tuple(shards), place=place, writes_index=False)


def _tensors_of(source: PatchedSource) -> dict[str, OutputTensor]:
    return {
        name: OutputTensor(name=name, dtype=entry.dtype, shape=entry.shape, origin=None)
        for name, entry in source.patch.contents.tensors.items()
    }


@final
class _Applying:
    """The tensors of a patch on their way into a folder."""

    def __init__(self, source: PatchedSource, sink: FolderSink, progress: Progress) -> None:
        self._source, self._sink, self._progress = source, sink, progress
        self._tensors = _tensors_of(source)

    def run(self, threads: int) -> None:
        """Decode every tensor that is not there yet."""
        tensors = self._tensors
        missing = [name for name in tensors if not self._is_there(name)]
        total = sum(tensor.nbytes for tensor in tensors.values())
        done = total - sum(tensors[name].nbytes for name in missing)
        found = in_order(self._tasks(missing), threads)
        for name in missing:
            for _ in range(0, num_words(tensors[name].dtype, prod(tensors[name].shape)), FRAME):
                next(found)
            self._sink.finish(name, {})
            done += tensors[name].nbytes
            self._progress(done, total, name)

    def _is_there(self, name: str) -> bool:
        """Return whether an interrupted run left a tensor that is what it should be."""
        if name not in self._sink.finished:
            return False
        frames, word = self._source.frames(name), form_of(self._tensors[name].dtype).word
        for k in range(len(frames)):
            start, stop = (place * word.itemsize for place in frames.span(k))
            if not frames.is_model(k, self._sink.read(name, start, stop - start)):
                return False
        return True

    def _tasks(self, names: list[str]) -> Iterator[Callable[[], None]]:
        for name in names:
            for k in range(len(self._source.frames(name))):
                yield partial(self._write, name, k)

    def _write(self, name: str, k: int) -> None:
        start, stop = self._source.frames(name).span(k)
        with self._sink.room(name, start, stop, form_of(self._tensors[name].dtype).word) as out:
            self._source.decode(name, k, out)
        self._source.release_words(name, start, stop)
