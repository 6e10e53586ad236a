"""A checkpoint written in place: any tensor, any part of it, in any order, from any thread.

Everything goes into `<output>.partial` beside the output and is renamed when whole. A journal of finished tensors with
their digests lets a killed run go on where it was.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from ..errors import OutputError
from .bytes_of import as_bytes
from .layout import Layout

JOURNAL = "journal.jsonl"
OWN_MARK = "sculpt-manifest.json"  # only a folder that holds it is ever replaced


def refuse_output(output: Path, inputs: Iterable[Path], *, overwrite: bool) -> None:
    """Raise OutputError where writing `output` would touch an input or something that exists."""
    if output.suffix == ".safetensors":
        raise OutputError(f"the output `{output}` must be a folder", hint="leave out `.safetensors`")
    here = output.resolve()
    for path in inputs:
        source = path.resolve()
        if here == source or (source.is_dir() and source in here.parents):
            raise OutputError(f"the output `{output}` lies inside the input `{path}`")
        if here in source.parents:
            raise OutputError(f"the output `{output}` contains the input `{path}`")
    if output.exists() and not overwrite:
        raise OutputError(f"`{output}` exists", hint="`--overwrite` replaces it, `-o` names another output")
    if output.exists() and not output.is_dir():
        raise OutputError(f"`{output}` is a file, not a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / OWN_MARK).is_file():
        raise OutputError(f"`{output}` was not written by sculpt, so `--overwrite` does not replace it")


def os_error(error: OSError, path: Path) -> OutputError:
    """Return the error of the file system as ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk is full: cannot write `{path}`", hint="nothing was left under the final name")
    return OutputError(f"cannot write `{path}`: {error.strerror or error}")


@final
class CheckpointWriter:
    """Writes one checkpoint; use as a context manager and call `commit` when every tensor is written.

    An exception inside removes what was written, except KeyboardInterrupt: then, as after a kill, `<output>.partial`
    stays and the next run with the same `fingerprint` resumes.

    Args:
        fingerprint: Identifies inputs and options; the journal of another run is discarded.
    """

    def __init__(self, output: Path, layout: Layout, *, fingerprint: str, overwrite: bool = False) -> None:
        self.output = output
        self.partial = output.with_name(output.name + ".partial")
        self._layout = layout
        self._fingerprint = fingerprint
        self._overwrite = overwrite
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        self._journal: Any = None
        self.finished: Mapping[str, dict[str, Any]] = {}

    def __enter__(self) -> CheckpointWriter:
        try:
            self.finished = self._read_journal()
            if not self.finished:
                shutil.rmtree(self.partial, ignore_errors=True)
                self.partial.mkdir(parents=True)
            for shard in self._layout.shards:
                self._create(self.partial / shard.file_name, shard.header, shard.nbytes)
            self._journal = (self.partial / JOURNAL).open("a", encoding="utf-8")
            if not self.finished:
                self._append({"fingerprint": self._fingerprint})
        except OSError as error:
            self._close()
            shutil.rmtree(self.partial, ignore_errors=True)
            raise os_error(error, self.partial) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close()
        if kind is not None and issubclass(kind, Exception):
            shutil.rmtree(self.partial, ignore_errors=True)

    def _create(self, file: Path, header: bytes, nbytes: int) -> None:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        self._files[file.name] = descriptor
        os.ftruncate(descriptor, nbytes)
        os.pwrite(descriptor, header, 0)

    def _close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        """Return the finished tensors of an interrupted run of the same fingerprint; none if it was another's."""
        try:
            lines = (self.partial / JOURNAL).read_text(encoding="utf-8").splitlines()
        except OSError:
            return {}
        entries = []
        for line in lines:
            try:
                entries.append(json.loads(line))
            except ValueError:
                break  # the line that was being written when the run was killed
        if not entries or entries[0].get("fingerprint") != self._fingerprint:
            return {}
        return {entry["name"]: entry for entry in entries[1:]}

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            self._journal.write(json.dumps(entry, sort_keys=True) + "\n")
            self._journal.flush()

    def write(self, name: str, first_byte: int, data: np.ndarray) -> None:
        """Write bytes of a tensor at their place. `data` is a contiguous array; any thread may call."""
        shard = self._layout.place[name]
        position = shard.offsets[name] + first_byte
        view = as_bytes(data)
        try:
            while view:
                written = os.pwrite(self._files[shard.file_name], view, position)
                view, position = view[written:], position + written
        except OSError as error:
            raise os_error(error, self.partial / shard.file_name) from error

    def read(self, name: str, first_byte: int, nbytes: int) -> bytes:
        """Return bytes of a tensor that lie in the output, to check what an interrupted run left."""
        shard = self._layout.place[name]
        return os.pread(self._files[shard.file_name], nbytes, shard.offsets[name] + first_byte)

    def finish(self, name: str, entry: Mapping[str, Any]) -> None:
        """Note in the journal that a tensor is whole; `entry` is given back by `finished` on resuming."""
        self._append({"name": name, **entry})

    def sync(self, file_name: str) -> None:
        """Bring one shard to the disk."""
        try:
            os.fdatasync(self._files[file_name]) if hasattr(os, "fdatasync") else os.fsync(self._files[file_name])
        except OSError as error:
            raise os_error(error, self.partial / file_name) from error

    def commit(self, add_files: Callable[[Path], None]) -> None:
        """Let `add_files` write the other files into the folder, then rename it to the output's name."""
        try:
            index = self._layout.index()
            if index is not None:
                (self.partial / self._layout.index_name).write_bytes(index)
            add_files(self.partial)
            for descriptor in self._files.values():
                os.fsync(descriptor)
            self._close()
            (self.partial / JOURNAL).unlink()
            for file in self.partial.rglob("*"):
                if file.suffix != ".safetensors":
                    _sync_path(file)
            _sync_path(self.partial)
            self._rename()
        except OSError as error:
            raise os_error(error, self.partial) from error

    def _rename(self) -> None:
        replaced = None
        if self.output.exists():
            if not self._overwrite:
                raise OutputError(f"`{self.output}` appeared while the run was under way")
            replaced = self.output.with_name(self.output.name + ".replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            self.output.rename(replaced)
        self.partial.rename(self.output)
        _sync_path(self.output.parent)
        if replaced is not None:
            shutil.rmtree(replaced)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
