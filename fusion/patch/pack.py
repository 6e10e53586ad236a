"""Two models in, a patch out that makes the second of the first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from ..checkpoint import Asked, Source, find_model
from ..checkpoint.companions import own_files
from ..checkpoint.output.guard import refuse_output
from ..checkpoint.safetensors_file import SafetensorsFile
from ..checkpoint.source import reading
from ..device import all_cores
from ..errors import cannot_read
from ..file_kinds import MANIFEST, PROVENANCE, SBOM, SIGNATURE, TENSORS
from ..names import align, is_constant
from ..progress import Progress, silent
from .contents import Contents, FileEntry, TensorEntry
from .forms import FRAME, num_words
from .frames import CodedFrame, coded, in_order, joined
from .reference import Reference, open_stored, words_of
from .source import PatchedSource
from .writer import PATCH, PatchWriter

# What an output of sculpt's holds beside what a model is shipped with.
OURS = (MANIFEST, TENSORS, "README.md", SBOM, PROVENANCE, SIGNATURE)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What was written.

    Attributes:
        nbytes: Of the patch.
        of_weights: Bytes of the model's weights.
        left: What lies beside the weights and is not in the patch, with the reason why.
    """

    nbytes: int
    of_weights: int
    left: Mapping[str, str]


def pack(
    base: Asked,
    model: Asked,
    *,
    output: Path,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Packed:
    """Write a patch that makes a model of its base, to the bit.

    Args:
        output: A `.safetensors` file.

    Raises:
        SculptError: Nothing is left under the output's name.
    """
    refs = find_model(base), find_model(model)
    refuse_output(output, refs, PATCH, overwrite=overwrite)
    own, theirs = map(open_stored, refs)
    beside = {} if isinstance(theirs, PatchedSource) else files_of(theirs)
    facts = [own.resume_key(), theirs.resume_key(), theirs.companions_key()]
    fingerprint = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
    writer = PatchWriter(output, fingerprint=fingerprint, made_by="pack", of=len(theirs.tensors), overwrite=overwrite)
    with reading([own, theirs]), writer:
        _Packing(own, theirs, writer, progress).run(threads or all_cores())
        if isinstance(theirs, PatchedSource):
            folder = writer.room()
            theirs.write_files(folder)
            beside = {name: folder / name for name in theirs.patch.contents.files}
        shards = {name: writer.put_header(name, header) for name, header in headers_of(theirs).items()}
        files = {
            name: writer.put_file(name, file, own.folder / name if own.folder else None)
            for name, file in beside.items()
        }
        for source in (own, theirs):
            source.refuse_changed()
        nbytes = writer.commit(lambda tensors: _contents(own, theirs, tensors, shards, files))
    return Packed(nbytes=nbytes, of_weights=theirs.nbytes, left=_left(theirs, beside))


def _left(model: Source, taken: Mapping[str, Path]) -> dict[str, str]:
    found = ((beside.name.as_posix() + "/" * beside.file.is_dir(), beside.left) for beside in model.beside())
    return {name: why for name, why in found if why is not None and name not in taken}


def _contents(
    own: Source,
    theirs: Source,
    tensors: Mapping[str, TensorEntry],
    shards: Mapping[str, FileEntry],
    files: Mapping[str, FileEntry],
) -> Contents:
    return Contents(
        base=own.ref.name,
        made_by="pack",
        strength=1.0,
        shards=shards,
        tensors={name: tensors[name] for name in map(theirs.name_in_file, theirs.tensors)},
        files=files,
    )


@final
class _Packing:
    """The tensors of a model on their way into a patch."""

    def __init__(self, own: Source, theirs: Source, writer: PatchWriter, progress: Progress) -> None:
        self._theirs, self._writer, self._progress = theirs, writer, progress
        shapes = [{name: info.shape for name, info in model.tensors.items()} for model in (own, theirs)]
        base_of = {name: base for base, name in align(*shapes).pairs.items()}
        self._references = {
            name: Reference.of(own, base_of.get(name), info.dtype, info.shape) for name, info in theirs.tensors.items()
        }

    def run(self, threads: int) -> None:
        """Code every tensor that is not there yet."""
        theirs, total = self._theirs, self._theirs.nbytes
        missing = [name for name in theirs.tensors if theirs.name_in_file(name) not in self._writer.finished]
        done = total - sum(theirs.tensors[name].nbytes for name in missing)
        found = in_order(self._tasks(missing), threads)
        for name in missing:
            info = theirs.tensors[name]
            frames = [next(found) for _ in range(0, num_words(info.dtype, info.num_elements), FRAME)]
            said = self._said(name, changed=any(frame.code for frame in frames))
            self._writer.put_tensor(theirs.name_in_file(name), joined(frames), said, {})
            done += info.nbytes
            self._progress(done, total, name)

    def _tasks(self, names: list[str]) -> Iterator[Callable[[], CodedFrame]]:
        for name in names:
            info = self._theirs.tensors[name]
            count = num_words(info.dtype, info.num_elements)
            for start in range(0, count, FRAME):
                yield partial(self._coded, name, start, min(start + FRAME, count))

    def _coded(self, name: str, start: int, stop: int) -> CodedFrame:
        info, reference = self._theirs.tensors[name], self._references[name]
        words, columns = words_of(self._theirs, info, start, stop), info.shape[-1] if info.shape else 0
        found = coded(reference.words(start, stop), words, info.dtype, start, columns=columns)
        reference.release(start, stop)
        Reference(source=self._theirs, info=info, dtype=info.dtype).release(start, stop)
        return found

    def _said(self, name: str, *, changed: bool) -> TensorEntry:
        info, reference = self._theirs.tensors[name], self._references[name]
        own = reference.info
        if own is None or not info.kind.fusible or is_constant(name, info.shape):
            strength = "stays"  # a fuse copies it
        else:
            strength = "scales" if own.dtype == info.dtype else "fixed"  # a fuse stores the base's dtype
        return TensorEntry(
            dtype=info.dtype,
            shape=info.shape,
            base=own.name if own else None,
            seen=reference.sample(),
            changed=changed,
            code="",
            strength=strength,
        )


def headers_of(model: Source) -> dict[str, bytes]:
    """Return the headers of a model's weight files; none where they are no safetensors files."""
    if isinstance(model, PatchedSource):
        return dict(model.headers())
    if any(file.suffix != ".safetensors" for file in model.files):
        return {}
    found = {}
    for file in model.files:
        opened = SafetensorsFile(file)
        try:
            with file.open("rb") as stream:
                first = min((opened.extent(name)[0] for name in opened.tensors), default=-1)
                found[file.name] = stream.read(first)
        except OSError as error:
            raise cannot_read(error, file) from error
    return found


def files_of(model: Source) -> dict[str, Path]:
    """Return the files that a model is shipped with, by their names, and its index.

    Raises:
        CheckpointError: One is a link out of the folder.
    """
    if model.folder is None:
        return {}
    found = {name.as_posix(): file for name, file in model.companions().items()}
    beside = [model.folder / name for name in OURS]
    if model.index is not None and ".safetensors" in model.index.suffixes:  # another's names files that nobody makes
        beside.append(model.index)
    found |= {name.as_posix(): file for name, file in own_files(model.folder, beside).items()}
    return found
