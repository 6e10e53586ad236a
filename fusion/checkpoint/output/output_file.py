"""One output file, preallocated and written in place from any thread, past the page cache where that can be.

Through the page cache, writing a checkpoint takes more CPU time than DARE does: each page is allocated, copied to and
written back later. Here whole segments go from the caller's memory to the disk (O_DIRECT); what does not fill a segment
waits in memory until its neighbours have come.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import numpy as np
import xxhash

from .allowance import Allowance
from .disk import reserve
from .pieces import Pieces

PAGE = 4096  # a multiple of every disk's block
SEGMENT = 1 << 18
MIN_DIRECT_BYTES = 1 << 24  # smaller files go through the page cache
HELD_BYTES = 1 << 24
MAX_WAITING = 256  # segments; the oldest of more is written as it is


def page_aligned(nbytes: int) -> np.ndarray:
    """Return uninitialised bytes that begin at a page."""
    room = np.empty(nbytes + PAGE, np.uint8)
    skip = -_address(room) % PAGE
    return room[skip : skip + nbytes]


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _pwrite(descriptor: int, data: np.ndarray, position: int) -> None:
    view = data.data
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


@final
class _Segment:
    """What has come of a segment so far."""

    def __init__(self, room: np.ndarray) -> None:
        self.bytes = room
        self.pieces: dict[int, int] = {}  # start: stop, within the segment

    def size(self) -> int:
        return sum(stop - start for start, stop in self.pieces.items())


@final
class OutputFile:
    """A file of known size. `write` may be called from any thread, with any part, in any order.

    Args:
        new_digest: Makes a hash object; one is fed in file order while the bytes are at hand. None: nobody will ask.
        parts: First byte of what is hashed on its own as well, by name, in file order.
        resumed: Whether pieces were written by an earlier run: the digests are then taken from the file.
        pieces: Where parts of segments go that other processes have the rest of; None where there are no others.
        held: What may be held in memory until it can be hashed in order; the rest is read from the file at the end.
    """

    def __init__(
        self,
        file: Path,
        nbytes: int,
        new_digest: Callable[[], Any] | None,
        *,
        parts: Mapping[str, int] = MappingProxyType({}),
        resumed: bool = False,
        pieces: Pieces | None = None,
        held: Allowance | None = None,
    ) -> None:
        self.file = file
        self.nbytes = nbytes
        self.written = 0
        self._lock = threading.Lock()
        self._waiting: dict[int, _Segment] = {}
        self._spare: list[np.ndarray] = []  # memory of segments that have been written
        self._pieced: set[int] = set()  # segments that are written by pieces, through the page cache
        self._pieces = pieces
        allowance = held or Allowance(HELD_BYTES)
        broken = resumed or pieces is not None
        self._hashed = None if new_digest is None else _InOrder(new_digest, parts, nbytes, allowance, broken=broken)
        cloexec = getattr(os, "O_CLOEXEC", 0)
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | cloexec, 0o644)
        try:
            reserve(self._descriptor, nbytes)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._direct: int | None = None
        if nbytes >= MIN_DIRECT_BYTES and hasattr(os, "O_DIRECT"):
            try:
                self._direct = os.open(file, os.O_WRONLY | os.O_DIRECT | cloexec)
            except OSError:  # a file system without it: tmpfs, some network mounts
                self._direct = None
        self._use_direct = self._direct is not None

    def write(self, position: int, data: np.ndarray) -> None:
        """Write a contiguous array at a byte of the file."""
        flat = data.reshape(-1).view(np.uint8)
        end = position + flat.size
        if self._hashed is not None:
            self._hashed.take(position, flat)  # before the disk can hold one up and with it those that follow
        if self._use_direct or self._pieces is not None:
            first = min(end, -(-position // SEGMENT) * SEGMENT)
            last = max(first, end // SEGMENT * SEGMENT)
            self._stage(position, flat[: first - position])
            self._write_whole(first, flat[first - position : last - position])
            self._stage(last, flat[last - position :])
        else:
            _pwrite(self._descriptor, flat, position)
        with self._lock:
            self.written += flat.size
            if self.written >= self.nbytes:
                self._spare.clear()

    def _write_whole(self, position: int, data: np.ndarray) -> None:
        """Write whole segments, at once if the memory begins at a page as the file does."""
        if _address(data) % PAGE == 0:
            self._write_direct(position, data)
            return
        for start in range(0, data.size, SEGMENT):
            self._stage(position + start, data[start : start + SEGMENT])

    def _write_direct(self, position: int, data: np.ndarray) -> None:
        if self._use_direct and self._direct is not None:
            try:
                _pwrite(self._direct, data, position)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self._use_direct = False  # it opens such files and then refuses
        _pwrite(self._descriptor, data, position)

    def _stage(self, position: int, data: np.ndarray) -> None:
        """Keep a part of one segment; write the segment once it is whole."""
        if not data.size:
            return
        number, start = divmod(position, SEGMENT)
        size = min(SEGMENT, self.nbytes - number * SEGMENT)
        with self._lock:
            if number in self._pieced:
                self._put(position, data)
                return
            segment = self._waiting.get(number)
            if segment is None:
                segment = self._waiting[number] = _Segment(self._spare.pop() if self._spare else page_aligned(SEGMENT))
            segment.bytes[start : start + data.size] = data
            segment.pieces[start] = start + data.size
            if segment.size() < size:
                if len(self._waiting) > MAX_WAITING:
                    self._write_pieces(next(iter(self._waiting)))
                return
            del self._waiting[number]
        if size == SEGMENT:
            self._write_direct(number * SEGMENT, segment.bytes)
        else:  # the end of the file, which is no whole page
            _pwrite(self._descriptor, segment.bytes[:size], number * SEGMENT)
        self._spare.append(segment.bytes)

    def _write_pieces(self, number: int) -> None:
        """Write what has come of a segment; from now on its pieces go through the page cache."""
        segment = self._waiting.pop(number)
        self._pieced.add(number)
        for start, stop in segment.pieces.items():
            self._put(number * SEGMENT + start, segment.bytes[start:stop])

    def _put(self, position: int, data: np.ndarray) -> None:
        if self._pieces is None:
            _pwrite(self._descriptor, data, position)
        else:
            self._pieces.put(self.file.name, position, data)

    def flush(self) -> None:
        """Write what waits in memory."""
        with self._lock:
            for number in list(self._waiting):
                self._write_pieces(number)

    def read(self, position: int, nbytes: int) -> bytes:
        """Return bytes that were written and do not wait in memory."""
        return os.pread(self._descriptor, nbytes, position)

    def sync(self) -> None:
        """Bring what does not wait in memory to the disk."""
        getattr(os, "fdatasync", os.fsync)(self._descriptor)

    def digest(self) -> str:
        """Return the hexadecimal digest of the whole file, once all of it has been written."""
        assert self._hashed is not None
        self.flush()
        return self._hashed.finish(self._descriptor)

    def part_digests(self) -> Mapping[str, str]:
        """Give `xxh3-128:hex` of the bytes of each part, once, after `digest` was asked for."""
        assert self._hashed is not None
        found, self._hashed.parts = self._hashed.parts, {}
        return found

    def close(self) -> None:
        """Close; what waits in memory is lost."""
        if self._hashed is not None:
            self._hashed.drop()
        for descriptor in (self._descriptor, self._direct):
            if descriptor is not None:
                os.close(descriptor)


def digests_of(
    file: Path, nbytes: int, new_digest: Callable[[], Any], parts: Mapping[str, int]
) -> tuple[str, Mapping[str, str]]:
    """Return the hexadecimal digest of a file that is whole, and `xxh3-128:hex` of its parts."""
    hashed = _InOrder(new_digest, parts, nbytes, Allowance(0), broken=True)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return hashed.finish(descriptor), hashed.parts
    finally:
        os.close(descriptor)


@final
class _InOrder:
    """Hashes a file's bytes in order while they come in nearly that order.

    Args:
        parts: First byte of each part, in file order; it ends where the next begins.
        allowance: What may be held of bytes that are not next.
        broken: Whether bytes are missing from what will come.

    Attributes:
        parts: Digests of the parts that have been hashed whole.
    """

    PIECE = 1 << 22

    def __init__(
        self,
        new_digest: Callable[[], Any],
        parts: Mapping[str, int],
        nbytes: int,
        allowance: Allowance,
        *,
        broken: bool,
    ) -> None:
        self._new_digest = new_digest
        self._lock = threading.Lock()
        self._nbytes = nbytes
        self._parts = parts
        self._first = min(parts.values(), default=nbytes)  # what comes before is the header
        self._start()
        self._held: dict[int, np.ndarray] = {}
        self._allowance = allowance
        self._gap = nbytes  # first byte that could not be held: from there on the file is read
        self._broken = broken

    def _start(self) -> None:
        self._digest = self._new_digest()
        self._part: Any = xxhash.xxh3_128()
        self._next = 0
        self.parts: dict[str, str] = {}
        # Name and end of each part, one after the other: a file has very many.
        self._ends = zip(self._parts, chain(islice(self._parts.values(), 1, None), [self._nbytes]), strict=False)
        self._end = next(self._ends, None)

    def take(self, position: int, data: np.ndarray) -> None:
        """Hash bytes, or hold a copy until it is their turn; what would be too much to hold is read back at the end."""
        with self._lock:
            if self._broken or position < self._next or position in self._held:  # bytes are written a second time
                self._broken = True
                self._drop()
            elif position > self._next:
                if position < self._gap and self._allowance.take(data.size):
                    self._held[position] = data.copy()
                else:
                    self._gap = min(self._gap, position)
                    self._drop(self._gap)
            else:
                self._feed(data)
                while self._next in self._held:
                    held = self._held.pop(self._next)
                    self._allowance.give(held.size)
                    self._feed(held)

    def _feed(self, data: Any) -> None:  # bytes, or an array of them
        self._digest.update(data)
        start, self._next = self._next, self._next + len(data)
        done = max(start, self._first)
        while self._end is not None:
            name, end = self._end
            stop = min(end, self._next)
            if done < stop:
                self._part.update(data[done - start : stop - start])
                done = stop
            if end > self._next:
                return
            self.parts[name] = f"xxh3-128:{self._part.hexdigest()}"
            self._part = xxhash.xxh3_128()
            self._end = next(self._ends, None)

    def _drop(self, first: int = 0) -> None:
        for position in [position for position in self._held if position >= first]:
            self._allowance.give(self._held.pop(position).size)

    def drop(self) -> None:
        """Let go of what is held."""
        with self._lock:
            self._drop()

    def finish(self, descriptor: int) -> str:
        """Return the digest; bytes that were not hashed are read from the file."""
        with self._lock:
            if self._broken:
                self._start()
            self._drop()
            while self._next < self._nbytes:
                piece = os.pread(descriptor, min(self.PIECE, self._nbytes - self._next), self._next)
                if not piece:
                    break
                self._feed(piece)
            return self._digest.hexdigest()
