"""A patch that is being written: tensors go into a workspace as they are made, and into the file once all are there."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, final

import numpy as np

from ..arithmetic.per_element import PerElement
from ..checkpoint.json_file import checked
from ..checkpoint.output.guard import Kind
from ..checkpoint.output.lines import LineFile, read_lines
from ..checkpoint.output.workspace import JOURNAL, Workspace, told
from ..errors import CheckpointError, cannot_read
from .contents import (
    CONTENTS,
    FILE,
    FORMAT,
    HEADER,
    ROOT,
    TENSOR,
    VERSION,
    Contents,
    FileEntry,
    TensorEntry,
    deflated,
    hex_digest,
    most_held,
)
from .file import is_patch
from .roots import content_of

PATCH = Kind(name="patch", is_folder=False, is_ours=is_patch, suffix=".safetensors")
DATA = "entries"  # in the workspace: one after the other, in the order in which they were made


@final
class PatchWriter:
    """Writes one patch; use as a context manager and call `commit` when every entry is there.

    An exception inside removes what was written, except KeyboardInterrupt and its like: then, as after a kill, the
    workspace stays and the next run with the same `fingerprint` goes on with the tensors that are missing.

    Args:
        fingerprint: Identifies inputs and options; the journal of another run is discarded.
        made_by: The command, for `status`.
        of: How many tensors there will be.

    Attributes:
        finished: The journal's lines on tensors that an earlier run left whole, by name.
        tensors: What is said of the tensors that are there.
    """

    def __init__(self, output: Path, *, fingerprint: str, made_by: str, of: int, overwrite: bool = False) -> None:
        self.output = output
        self._first = {"fingerprint": fingerprint, "of": of, "unit": "tensors"}
        self._made_by = made_by
        self._overwrite = overwrite
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}
        self.tensors: dict[str, TensorEntry] = {}
        self.finished: dict[str, dict[str, Any]] = {}
        self._data: BinaryIO | None = None
        self._journal: LineFile | None = None

    def __enter__(self) -> PatchWriter:
        self._workspace = Workspace(self.output, made_by=self._made_by)
        try:
            with told(self._workspace.folder):
                self._open()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _open(self) -> None:
        journal, data = self._workspace.folder / JOURNAL, self._workspace.folder / DATA
        entries = read_lines(journal)
        size = data.stat().st_size if data.exists() else 0
        if entries[:1] != [self._first]:  # another run's entries, or none whose journal can be believed
            self._workspace.empty()
            entries, size = [], 0
        self._workspace.begun = True
        kept = [entry for entry in entries[1:] if entry["start"] + entry["nbytes"] <= size]
        self._data = data.open("r+b" if size else "w+b")
        for entry in kept:
            if self._is_whole(entry):
                self._places[entry["entry"]] = entry["start"], entry["nbytes"]
                if "tensor" in entry:
                    self.tensors[entry["name"]] = checked(TensorEntry, entry["tensor"])
                    self.finished[entry["name"]] = entry
        self._data.seek(0, 2)
        self._journal = LineFile(journal, entries)
        if not entries:
            self._journal.append(self._first)

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        return hex_digest(self._read(entry["start"], entry["nbytes"])) == entry["digest"]

    def _read(self, start: int, nbytes: int) -> bytes:
        assert self._data is not None
        self._data.flush()
        self._data.seek(start)
        return self._data.read(nbytes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
        finally:
            self._workspace.__exit__(kind, error, trace)

    def _close(self) -> None:
        data, self._data = self._data, None
        journal, self._journal = self._journal, None
        with suppress(OSError):  # what is missing on the disk is made again: every entry has its digest
            if data is not None:
                data.close()
        if journal is not None:
            journal.close()

    def _put(self, entry: str, pieces: Iterable[bytes], facts: Mapping[str, Any]) -> str:
        """Write an entry, and return its digest; any thread may call."""
        assert self._data is not None
        assert self._journal is not None
        content = b"".join(pieces)
        digest = hex_digest(content)
        with self._lock, told(self._workspace.folder / DATA):
            start = self._data.seek(0, 2)
            self._data.write(content)
            self._data.flush()
            self._places[entry] = start, len(content)
            line = {"entry": entry, "start": start, "nbytes": len(content), "digest": digest}
            self._journal.append({**line, **facts})
        return digest

    def put_tensor(self, name: str, pieces: Iterable[bytes], said: TensorEntry, facts: Mapping[str, Any]) -> None:
        """Write what is coded of a tensor.

        Args:
            said: What the contents are to say of it; the digest is put in here.
            facts: For the journal.
        """
        content = b"".join(pieces)
        tensor = replace(said, code=hex_digest(content))
        self._put(TENSOR + name, [content], {"name": name, "tensor": asdict(tensor), **facts})
        self.tensors[name] = tensor

    def put_root(self, root: PerElement) -> str:
        """Write `sqrt(H)`, once for all tensors that have the same, and return the name of its entry."""
        content = content_of(root)
        name = ROOT + hex_digest(content)
        if name not in self._places:
            self._put(name, [len(content).to_bytes(8, "little"), deflated(content)], {})
        return name

    def put_header(self, shard: str, header: bytes) -> FileEntry:
        """Write the header of a weight file, and return what the contents are to say of it."""
        self._put(HEADER + shard, [deflated(header)], {})
        return FileEntry(nbytes=len(header), digest=hex_digest(header), stored=True)

    def put_file(self, name: str, file: Path, base: Path | None) -> FileEntry:
        """Write a file beside the weights unless it is the base's; return what the contents are to say of it."""
        try:
            content = file.read_bytes()
            stored = base is None or not base.is_file() or base.read_bytes() != content
        except OSError as error:
            raise cannot_read(error, Path(error.filename or file)) from error
        if stored:
            self._put(FILE + name, [deflated(content)], {})
        return FileEntry(nbytes=len(content), digest=hex_digest(content), stored=stored)

    def code(self, name: str) -> np.ndarray:
        """Return what was written of a tensor."""
        return self.content(TENSOR + name)

    def content(self, entry: str) -> np.ndarray:
        """Return what was written of an entry."""
        with self._lock, told(self._workspace.folder / DATA):
            return np.frombuffer(self._read(*self._places[entry]), np.uint8)

    def room(self) -> Path:
        """Return a new folder for files that are to go into the patch."""
        folder = self._workspace.folder / "files"
        with told(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        return folder

    def commit(self, contents: Callable[[Mapping[str, TensorEntry]], Contents]) -> int:
        """Put the file together and give it the output's name; return its size.

        Args:
            contents: Makes the contents of what is said of the tensors.
        """
        made = contents(self.tensors)
        text = made.pack()
        packed = deflated(text)
        names = [*(HEADER + name for name in made.shards)]
        names += [FILE + name for name, entry in made.files.items() if entry.stored]
        names += [*sorted(made.roots), *(TENSOR + name for name in made.tensors)]
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "contents_bytes": str(len(text)),
            "contents_digest": hex_digest(packed),
        }
        sizes = {CONTENTS: len(packed), **{name: self._places[name][1] for name in names}}
        self._refuse_unreadable(made, len(text), sum(sizes.values()))
        with told(self._workspace.folder), self._workspace.payload.open("wb") as stream:
            stream.write(_header(metadata, sizes))
            stream.write(packed)
            for name in names:
                stream.write(self._read(*self._places[name]))
            size = stream.tell()
        self._close()
        self._workspace.publish(PATCH.may_replace if self._overwrite else None)
        return size

    def _refuse_unreadable(self, made: Contents, nbytes: int, size: int) -> None:
        """Raise CheckpointError where readers would take the patch for a bomb."""
        of_roots = sum(int.from_bytes(self._read(self._places[name][0], 8), "little") for name in made.roots)
        held = {"contents": nbytes, "curvature": of_roots, **{n: shard.nbytes for n, shard in made.shards.items()}}
        name = max(held, key=held.__getitem__)
        if held[name] > most_held(size):
            raise CheckpointError(
                f"`{name}` takes {held[name]} bytes and a patch of {size} bytes holds {most_held(size)} at most",
                hint="a weight file that is saved anew has a shorter header" if name in made.shards else None,
            )


def _header(metadata: Mapping[str, str], sizes: Mapping[str, int]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, nbytes in sizes.items():
        entries[name] = {"dtype": "U8", "shape": [nbytes], "data_offsets": [start, start + nbytes]}
        start += nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
