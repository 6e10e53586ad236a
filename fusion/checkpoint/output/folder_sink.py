"""A folder as output: a checkpoint written in place.

Everything goes into a workspace beside the output and is renamed when whole. A journal of finished tensors with their
digests lets a killed run go on where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

import numpy as np
import xxhash

from ...errors import OutputError, os_error
from .buffers import Buffer, Buffers
from .guard import CHECKPOINT
from .layout import Layout, Shard
from .lines import Lines, read_lines
from .output_file import SEGMENT, OutputFile
from .sink import Sink
from .workspace import JOURNAL, Workspace, told

SYNC_BYTES = 1 << 28  # of a file are written before the disk is asked to keep up


@final
class FolderSink(Sink):
    """Writes one checkpoint; use as a context manager and call `commit` when every tensor is written.

    An exception inside removes what was written, except KeyboardInterrupt and its like: then, as after a kill, the
    workspace stays and the next run with the same `fingerprint` resumes.

    Args:
        fingerprint: Identifies inputs and options; the journal of another run is discarded.
        made_by: The command, for `status`.
        new_digest: Makes the hash object for `digest`.
        buffers: How many tiles may be computed, or computed and not yet on the disk.
    """

    def __init__(
        self,
        output: Path,
        layout: Layout,
        *,
        fingerprint: str,
        made_by: str = "fuse",
        overwrite: bool = False,
        new_digest: Callable[[], Any] = xxhash.xxh3_128,
        buffers: int = 8,
    ) -> None:
        self.output = output
        self._made_by = made_by
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
        self._journal: Lines | None = None

    def __enter__(self) -> FolderSink:
        self._workspace = Workspace(self.output, made_by=self._made_by)
        try:
            with told(self._workspace.folder):
                self._open()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def _open(self) -> None:
        journal = self._workspace.folder / JOURNAL
        first = {"fingerprint": self._fingerprint, "of": len(self._layout.tensors), "unit": "tensors"}
        entries = read_lines(journal)
        if entries[:1] != [first]:  # another run's files, or none whose journal can be believed
            self._workspace.empty()
            entries = []
        self._workspace.begun = True
        self.finished = {entry["name"]: entry for entry in entries[1:]}
        self._workspace.payload.mkdir(exist_ok=True)
        for shard in self._layout.shards:
            self._create(shard)
        self._journal = Lines(journal, entries)
        if not entries:
            self._journal.append(first)

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Close, and let the workspace go; where it is kept, with all that waits in memory on the disk."""
        interrupted = error is not None and not isinstance(error, Exception)
        try:
            self._writing.shutdown(cancel_futures=not interrupted)
            with suppress(OSError):  # what is missing on the disk is made again: every tensor has its digest
                self._close(flush=interrupted)
        finally:
            self._workspace.__exit__(None, error, None)

    def _create(self, shard: Shard) -> None:
        output = OutputFile(
            self._workspace.payload / shard.file_name,
            shard.nbytes,
            self._new_digest,
            parts=shard.offsets,
            resumed=bool(self.finished),
        )
        self._files[shard.file_name] = output
        output.write(0, np.frombuffer(shard.header, np.uint8))

    def _close(self, *, flush: bool = False) -> None:
        files, self._files = list(self._files.values()), {}
        journal, self._journal = self._journal, None
        for file in files:
            try:
                if flush:
                    file.flush()
            finally:
                file.close()
        if journal is not None:
            journal.close()

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
        assert self._journal is not None
        with told(self._workspace.folder / JOURNAL):
            self._journal.append({"name": name, **entry})

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
        """Let `add_files` write the other files into the folder, whose weights are whole; then give it its name."""
        folder = self._workspace.payload
        with told(self._workspace.folder):
            index = self._layout.index()
            if index is not None:
                (folder / self._layout.index_name).write_bytes(index)
            self._drain()
            for file in self._files.values():
                file.flush()
            add_files(folder)
            self._close()
        self._workspace.publish(CHECKPOINT.may_replace if self._overwrite else None)
