"""A folder as output: a checkpoint written in place.

Everything goes into `<output>.partial` beside the output and is renamed when whole. A journal of finished tensors with
their digests lets a killed run go on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import xxhash

from ...errors import REPLACED, OutputError, os_error
from ...ref import Asked, find_model
from ..companions import OWN_MARK
from .buffers import Buffer, Buffers
from .claim import Claim
from .layout import Layout, Shard
from .output_file import SEGMENT, OutputFile
from .sink import Sink

JOURNAL = "journal.jsonl"
SYNC_BYTES = 1 << 28  # of a file are written before the disk is asked to keep up
_LINE = json.JSONEncoder(sort_keys=True).encode


def refuse_output(output: Path, inputs: Iterable[Asked], *, overwrite: bool) -> None:
    """Raise OutputError where writing `output` would touch an input or something that exists."""
    if output.suffix == ".safetensors":
        raise OutputError(f"the output `{output}` must be a folder", hint="leave out `.safetensors`")
    here = output.resolve()
    for asked in inputs:
        source = find_model(asked).path.resolve()
        if here == source or (source.is_dir() and source in here.parents):
            raise OutputError(f"the output `{output}` lies inside the input `{asked}`")
        if here in source.parents:
            raise OutputError(f"the output `{output}` contains the input `{asked}`")
    if output.exists() and not overwrite:
        raise OutputError(f"`{output}` exists", ways=REPLACED)
    if output.exists() and not output.is_dir():
        raise OutputError(f"`{output}` is a file, not a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / OWN_MARK).is_file():
        raise OutputError(f"`{output}` was not written by sculpt, so it is not replaced")


@final
class FolderSink(Sink):
    """Writes one checkpoint; use as a context manager and call `commit` when every tensor is written.

    An exception inside removes what was written, except KeyboardInterrupt: then, as after a kill, `<output>.partial`
    stays and the next run with the same `fingerprint` resumes.

    Args:
        fingerprint: Identifies inputs and options; the journal of another run is discarded.
        new_digest: Makes the hash object for `digest`.
        buffers: How many tiles may be computed, or computed and not yet on the disk.
    """

    def __init__(
        self,
        output: Path,
        layout: Layout,
        *,
        fingerprint: str,
        overwrite: bool = False,
        new_digest: Callable[[], Any] = xxhash.xxh3_128,
        buffers: int = 8,
    ) -> None:
        self.output = output
        self.partial = output.with_name(output.name + ".partial")
        self._layout = layout
        self._fingerprint = fingerprint
        self._overwrite = overwrite
        self._new_digest = new_digest
        self._files: dict[str, OutputFile] = {}
        self._synced: dict[str, int] = {}
        self._buffers = Buffers(buffers)
        # One thread waits for the disk while the other copies into the page cache; more only take cores from methods.
        self._writing = ThreadPoolExecutor(2)
        self._failure: OutputError | None = None
        self._lock = threading.Lock()
        self._journal: Any = None
        self._claim: Claim | None = None

    def __enter__(self) -> FolderSink:
        try:
            self._claim = Claim(self.partial)
            self.finished = self._read_journal()
            if not self.finished:  # another run's files, or none whose journal can be believed
                self._claim.empty()
            for shard in self._layout.shards:
                self._create(shard)
            self._journal = (self.partial / JOURNAL).open("a", encoding="utf-8")
            if not self.finished:
                self._append({"fingerprint": self._fingerprint})
        except OSError as error:
            self._close()
            self._leave(keep=False)
            raise os_error(error, self.partial) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        self._close(keep=not failed)
        self._leave(keep=not failed)

    def _leave(self, *, keep: bool) -> None:
        if not keep:
            shutil.rmtree(self.partial, ignore_errors=True)
        if self._claim is not None:
            self._claim.release()

    def _create(self, shard: Shard) -> None:
        output = OutputFile(
            self.partial / shard.file_name,
            shard.nbytes,
            self._new_digest,
            parts=shard.offsets,
            resumed=bool(self.finished),
        )
        self._files[shard.file_name] = output
        output.write(0, np.frombuffer(shard.header, np.uint8))

    def _close(self, *, keep: bool = False) -> None:
        self._writing.shutdown(cancel_futures=not keep)
        for file in self._files.values():
            if keep:
                file.flush()
            file.close()
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
        # A whole line at once and flushed: a kill leaves at most the last line cut short, which is then not read.
        line = _LINE(entry) + "\n"
        with self._lock:
            self._journal.write(line)
            self._journal.flush()

    @contextmanager
    def room(self, name: str, start: int, stop: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Give memory for elements `start … stop − 1` of a tensor; they are written once the block is left.

        The disk is waited for elsewhere: what fails there is raised by a later call.
        """
        shard = self._layout.place[name]
        file, position = self._files[shard.file_name], shard.offsets[name] + start * dtype.itemsize
        buffer = self._buffers.take()
        try:
            if self._failure is not None:
                raise self._failure
            data = buffer.view(stop - start, dtype, position)
            yield data
            if data.nbytes < SEGMENT:  # a copy into memory, done sooner than another thread is woken
                self._write(file, position, data)
        except BaseException:
            self._buffers.give(buffer)
            raise
        if data.nbytes < SEGMENT:
            self._buffers.give(buffer)
        else:
            self._writing.submit(self._write_and_give, file, position, data, buffer)

    def _write_and_give(self, file: OutputFile, position: int, data: np.ndarray, buffer: Buffer) -> None:
        try:
            self._write(file, position, data)
        except OutputError as error:  # nobody waits for this thread: whoever wants memory next is told
            self._failure = error
        finally:
            self._buffers.give(buffer)

    def _write(self, file: OutputFile, position: int, data: np.ndarray) -> None:
        try:
            file.write(position, data)
            # Asked for now and then, lest the disk is idle first and the run waits for all of it at the end.
            due = file.nbytes if file.written >= file.nbytes else file.written // SYNC_BYTES * SYNC_BYTES
            with self._lock:
                late = due > self._synced.get(file.file.name, 0)
                self._synced[file.file.name] = due
            if late:  # outside the lock: a sync takes as long as the disk does
                file.sync()
        except OSError as error:
            raise os_error(error, file.file) from error

    def _drain(self) -> None:
        """Wait until everything is written, and raise what went wrong."""
        self._writing.shutdown()
        if self._failure is not None:
            raise self._failure

    def read(self, name: str, first_byte: int, nbytes: int) -> bytes:
        """Return bytes of a tensor that lie in the output, to check what an interrupted run left."""
        shard = self._layout.place[name]
        return self._files[shard.file_name].read(shard.offsets[name] + first_byte, nbytes)

    def finish(self, name: str, entry: Mapping[str, Any]) -> None:
        """Note in the journal that a tensor is whole; `entry` is given back by `finished` on resuming."""
        self._append({"name": name, **entry})

    def digest(self, file_name: str) -> str:
        """Return the hexadecimal digest of a shard that is whole."""
        self._drain()
        file = self._files[file_name]
        try:
            return file.digest()
        except OSError as error:
            raise os_error(error, file.file) from error

    def tensor_digests(self) -> dict[str, str]:
        """Return `xxh3-128:hex` of each tensor's bytes, once `digest` was asked for of every shard."""
        return {name: digest for file in self._files.values() for name, digest in file.part_digests().items()}

    def commit(self, add_files: Callable[[Path], None]) -> None:
        """Let `add_files` write the other files into the folder, then rename it to the output's name."""
        try:
            index = self._layout.index()
            if index is not None:
                (self.partial / self._layout.index_name).write_bytes(index)
            (self.partial / JOURNAL).unlink()  # from here on it cannot be resumed, only committed
            add_files(self.partial)
            self._drain()
            for file in self._files.values():
                file.flush()
                file.sync()
            self._close()
            # Weights were synced above, the small files are not yet.
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
            # Renamed, not removed: until the new folder has the name, the old one is still there.
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
