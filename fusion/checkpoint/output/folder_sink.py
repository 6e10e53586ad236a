"""A folder as output, or one file: a checkpoint written in place.

Everything goes into a workspace beside the output and is renamed when whole. A journal of finished tensors with their
digests lets a killed run go on where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, final

import numpy as np
import xxhash

from ...errors import OutputError, os_error
from ...launch import Launch
from ...places.push import UPLOAD
from .allowance import Allowance
from .buffers import Buffer, Buffers
from .guard import CHECKPOINT, SINGLE_FILE
from .layout import Layout, Shard
from .output_file import HELD_BYTES, SEGMENT, OutputFile, digests_of
from .pieces import Pieces, write_pieces
from .processes import Processes
from .shared_journal import SharedJournal
from .sink import Sink
from .workspace import JOURNAL, is_interrupt, payload_of, told

FILES = "files"
# One waits for the disk while the other copies into the page cache. More only take cores from methods where those are
# few: half as many as there are threads, as writing a tile takes about as long as computing it.
WRITERS = 2
SYNC_BYTES = 1 << 28  # of a file are written before the disk is asked to keep up


@final
class FolderSink(Sink):
    """Writes one checkpoint; use as a context manager and call `commit` when every tensor is written.

    An exception inside removes what was written, except KeyboardInterrupt and its like: then, as after a kill, the
    workspace stays and the next run with the same `fingerprint` resumes.

    Args:
        fingerprint: Identifies inputs and options; the journal of another run is discarded.
        made_by: The command, for `status`.
        new_digest: Makes the hash object for `digest`; None where nobody will ask for digests.
        buffers: How many tiles may be computed, or computed and not yet on the disk.
        writers: How many threads write.
        processes: That write this checkpoint together, each its own tensors; all call `digests` and `commit`.
    """

    def __init__(
        self,
        output: Path,
        layout: Layout,
        *,
        fingerprint: str,
        made_by: str = "fuse",
        overwrite: bool = False,
        new_digest: Callable[[], Any] | None = xxhash.xxh3_128,
        buffers: int = 8,
        held_bytes: int = HELD_BYTES,
        writers: int = WRITERS,
        processes: Processes | None = None,
    ) -> None:
        self.output = output
        self._made_by = made_by
        self._layout = layout
        self._is_file = output.suffix == ".safetensors"
        self._fingerprint = fingerprint
        self._overwrite = overwrite
        self._new_digest = new_digest
        self._files: dict[str, OutputFile] = {}
        self._synced: dict[str, int] = {}
        self._buffers = Buffers(buffers)
        self._held = Allowance(held_bytes)
        self._writers = writers
        self._writing = ThreadPoolExecutor(writers)
        self._failure: OutputError | None = None
        self._lock = threading.Lock()
        self._journal: SharedJournal | None = None
        self._processes = processes or Processes(Launch())
        self._pieces: Pieces | None = None
        self._meeting = ExitStack()
        self._upload = UPLOAD.get()

    def __enter__(self) -> FolderSink:
        try:
            self._folder = self._meeting.enter_context(self._processes.meet(self.output, made_by=self._made_by))
            # Of a single file the workspace holds a folder too: the file leaves it when it is whole.
            self._payload = self._folder / FILES if self._is_file else payload_of(self._folder, self.output)
            with told(self._folder):
                self._open()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def _open(self) -> None:
        first = {"fingerprint": self._fingerprint, "of": len(self._layout.place), "unit": "tensors"}
        self._journal = SharedJournal(self._processes, self._folder, first)
        self._payload.mkdir(exist_ok=True)
        self.finished = {entry["name"]: entry for entry in self._journal.entries}
        if self._processes.are_several:
            self._pieces = Pieces(self._pieces_of(self._processes.rank))
        for shard in self._layout.shards:
            (self._payload / shard.file_name).parent.mkdir(exist_ok=True)
            self._create(shard)

    def _pieces_of(self, rank: int) -> Path:
        return self._folder / f"pieces-{rank}.bin"

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Close, and let the workspace go; where it is kept, with all that waits in memory on the disk."""
        interrupted = is_interrupt(error)
        try:
            self._writing.shutdown(cancel_futures=not interrupted)
            with suppress(OSError):  # what is missing on the disk is made again: every tensor has its digest
                self._close(flush=interrupted)
        finally:
            self._meeting.__exit__(type(error) if error is not None else None, error, None)

    def _create(self, shard: Shard) -> None:
        output = OutputFile(
            self._payload / shard.file_name,
            shard.nbytes,
            self._new_digest,
            parts=shard.offsets,
            resumed=bool(self.finished),
            pieces=self._pieces,
            held=self._held,
        )
        self._files[shard.file_name] = output
        if self._processes.is_first:
            output.write(0, np.frombuffer(shard.header, np.uint8))

    def _close(self, *, flush: bool = False) -> None:
        files, self._files = list(self._files.values()), {}
        for file in files:
            try:
                if flush:
                    file.flush()
            finally:
                file.close()
        if self._journal is not None:
            self._journal.close()
        if self._pieces is not None:
            self._pieces.close()

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
            if self._upload is not None and file.written >= file.nbytes and not self._processes.are_several:
                name = file.file.relative_to(self._payload)
                self._upload.begin(name.as_posix(), file.file, self.output if self._is_file else self.output / name)
        except OSError as error:
            raise os_error(error, file.file) from error

    def _drain(self) -> None:
        """Wait until everything is written, and raise what went wrong."""
        self._writing.shutdown()
        if self._failure is not None:
            raise self._failure

    def file_of(self, name: str) -> str:
        """Return the shard that a tensor goes to."""
        return self._layout.place[name].file_name

    def read(self, name: str, first_byte: int, nbytes: int) -> bytes:
        """Return bytes of a tensor that lie in the output, to check what an interrupted run left."""
        shard = self._layout.place[name]
        return self._files[shard.file_name].read(shard.offsets[name] + first_byte, nbytes)

    def finish(self, name: str, entry: Mapping[str, Any]) -> None:
        """Note in the journal that a tensor is whole; `entry` is given back by `finished` on resuming.

        Raises:
            OutputError: Another process failed.
        """
        assert self._journal is not None
        with told(self._folder / JOURNAL):
            self._journal.append({"name": name, **entry})
        self._processes.check()

    def digests(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the hexadecimal digest of each file, and `xxh3-128:hex` of each tensor's bytes; all are written."""
        self._drain()
        found: dict[str, tuple[str, Mapping[str, str]]] = {}
        if self._processes.are_several:
            with told(self._payload):
                found = self._digests_together()
        if not found:
            with ThreadPoolExecutor(self._writers) as pool:  # of a file that did not come in order much is left to hash
                found = dict(zip(self._files, pool.map(_digests, self._files.values()), strict=True))
        files: dict[str, str] = {}
        tensors: dict[str, str] = {}
        while found:  # of very many tensors, no digest is held twice
            name, (files[name], parts) = found.popitem()
            tensors |= parts
        return {name: files[name] for name in sorted(files)}, tensors

    def _digests_together(self) -> dict[str, tuple[str, Mapping[str, str]]]:
        """Put the pieces of all processes where they belong, then have each hash its share of the files."""
        processes = self._processes
        for file in self._files.values():
            file.flush()
            file.sync()
        assert self._journal is not None
        new_digest = self._new_digest
        assert new_digest is not None
        self._journal.sync()
        self._close()
        processes.gather("written")
        if processes.is_first:
            for rank in range(processes.count):
                write_pieces(self._pieces_of(rank), self._payload)
        processes.gather("joined")
        own = {
            shard.file_name: digests_of(self._payload / shard.file_name, shard.nbytes, new_digest, shard.offsets)
            for shard in self._layout.shards[processes.rank :: processes.count]
        }
        return {name: tuple(one) for part in processes.gather("digests", own) for name, one in part.items()}

    def noted(self) -> dict[str, Mapping[str, Any]]:
        """Return what `finish` was told of each tensor, by all processes, once `digests` was asked for."""
        assert self._journal is not None
        return {entry["name"]: entry for entry in self._journal.of_all()}

    def commit(self, add_files: Callable[[Path], None]) -> None:
        """Have the first process write the other files beside the weights, which are whole, then name the folder."""

        def fill(folder: Path) -> None:
            self._layout.write_indices(self._payload)
            self._drain()
            for file in self._files.values():
                file.flush()
            add_files(self._payload)
            self._close()
            if self._is_file:
                (shard,) = self._layout.shards
                (self._payload / shard.file_name).replace(folder)

        kind = SINGLE_FILE if self._is_file else CHECKPOINT
        self._processes.publish(fill, kind.may_replace if self._overwrite else None)


def _digests(file: OutputFile) -> tuple[str, Mapping[str, str]]:
    try:
        return file.digest(), file.part_digests()
    except OSError as error:
        raise os_error(error, file.file) from error
