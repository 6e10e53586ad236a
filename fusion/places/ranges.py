"""Bytes of files that lie elsewhere, by ranges: in blocks that several threads share, with those that come next.

What is read in order is fetched ahead of its turn. A look at a few bytes (a header, a sample) fetches a small block.
Blocks that nobody has used for longest go first, so that all take `HELD` bytes, whatever the model's size.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

import numpy as np

from .names import HubName, Url
from .pointer import Pointer, read_pointer
from .retry import retried

BLOCK = 1 << 23
SMALL = 1 << 16  # what is not more is fetched by itself
HELD = 1 << 28  # bytes of blocks that are kept
AHEAD = 3  # blocks
AT_ONCE = 8

Read = Callable[[int, int], bytes]
Key = tuple[Any, int, int]


class _Blocks:
    """The blocks of all files, by file and range, those that were used last at the end."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self.nbytes = 0
        self.pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ranges")

    def get(self, key: Key, read: Callable[[], bytes]) -> Future[bytes]:
        """Return a block that is there or on its way; else have it fetched."""
        with self.lock:
            if key in self.held:
                self.held.move_to_end(key)
                return self.held[key]
            future = self.held[key] = self.pool.submit(read)
            self.nbytes += key[2] - key[1]
            while self.nbytes > HELD and len(self.held) > AHEAD + 2:
                (_, start, stop), _ = self.held.popitem(last=False)
                self.nbytes -= stop - start
            return future

    def peek(self, key: Key) -> Future[bytes] | None:
        """Return a block if it is there or on its way."""
        with self.lock:
            return self.held.get(key)

    def forget(self, key: Key) -> None:
        """Have a block that could not be had fetched again."""
        with self.lock:
            if self.held.pop(key, None) is not None:
                self.nbytes -= key[2] - key[1]


@cache
def _blocks() -> _Blocks:
    return _Blocks()


@final
class Ranged:
    """The bytes of one file that lies elsewhere; any thread may read.

    Attributes:
        fetched: Bytes that came over the line.
    """

    def __init__(self, pointer: Pointer) -> None:
        self.pointer = pointer
        self.nbytes = pointer.nbytes
        self.fetched = 0
        self._read, self._refuse_changed = _reader(pointer)
        self._lock = threading.Lock()
        self._digest: Any = None
        self._hashed = 0
        self._hashing = False
        self._arrived: dict[int, bytes] = {}
        self._next = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return bytes `start … stop − 1`, read-only.

        Raises:
            CheckpointError: They cannot be had.
        """
        if start >= stop:
            return np.empty(0, np.uint8)
        first, last = start // BLOCK, (stop - 1) // BLOCK
        is_small = stop - start <= SMALL
        if is_small and not all(_blocks().peek(self._key(k, BLOCK)) for k in range(first, last + 1)):
            return self._joined(start, stop, SMALL)
        is_in_order, self._next = self._next in (first, first + 1), last + 1
        for k in range(last + 1, min(last + 1 + AHEAD, -(-self.nbytes // BLOCK)) if is_in_order else 0):
            self._get(k, BLOCK)
        found = self._joined(start, stop, BLOCK)
        self._hash()
        return found

    def look(self, start: int, stop: int) -> np.ndarray:
        """Return bytes `start … stop − 1`, of which no others are read soon: nothing is fetched ahead."""
        return self._joined(start, stop, SMALL) if start < stop else np.empty(0, np.uint8)

    def foresee(self, spans: Iterable[tuple[int, int]]) -> None:
        """Have small ranges fetched at the same time; they are read soon."""
        wanted = {k for start, stop in spans if start < stop for k in range(start // SMALL, (stop - 1) // SMALL + 1)}
        for k in sorted(wanted):
            if _blocks().peek(self._key(k * SMALL // BLOCK, BLOCK)) is None:
                self._get(k, SMALL)

    def hash_with(self, new_digest: Callable[[], Any]) -> None:
        """Begin a digest of the whole file, taken of blocks as they come, as far as they come in order."""
        with self._lock:
            self._digest, self._hashed, self._arrived = new_digest(), 0, {}

    def digest(self, new_digest: Callable[[], Any]) -> str:
        """Return the hexadecimal digest of the whole file; what has not been hashed yet is fetched.

        Raises:
            CheckpointError: It cannot be had.
        """
        if self._digest is None:
            self.hash_with(new_digest)
        assert self._digest is not None
        while self._hashed < self.nbytes:
            start = self._hashed
            piece = self.read(start, min(start + BLOCK, self.nbytes))
            self._hash()
            with self._lock:
                if self._hashed == start and not self._hashing:
                    self._digest.update(piece)
                    self._hashed += len(piece)
        found = self._digest.hexdigest()
        self._digest = None
        return found

    def refuse_changed(self) -> None:
        """Raise CheckpointError where the file is another one by now."""
        self._refuse_changed()

    def _key(self, k: int, size: int) -> Key:
        return (self.pointer, k * size, min((k + 1) * size, self.nbytes))

    def _get(self, k: int, size: int) -> Future[bytes]:
        key = self._key(k, size)
        return _blocks().get(key, lambda: self._fetch(key))

    def _fetch(self, key: Key) -> bytes:
        _, start, stop = key
        try:
            found = self._read(start, stop)
        except BaseException:
            _blocks().forget(key)
            raise
        with self._lock:
            self.fetched += stop - start
            if self._digest is not None and key == self._key(start // BLOCK, BLOCK) and start >= self._hashed:
                self._arrived[start] = found
                while len(self._arrived) * BLOCK > HELD:
                    self._arrived.pop(max(self._arrived))  # it is fetched once more when its turn comes
        self._hash()
        return found

    def _hash(self) -> None:
        """Hash the blocks whose turn it is, as far as they are there; a thread that is at it serves the others."""
        with self._lock:
            if self._digest is None or self._hashing:
                return
            self._hashing = True
        while (found := self._turn()) is not None:
            self._digest.update(found)
            with self._lock:
                self._hashed += len(found)

    def _turn(self) -> bytes | None:
        with self._lock:
            found = self._arrived.pop(self._hashed, None)
            if found is None and self._hashed < self.nbytes:
                held = _blocks().peek(self._key(self._hashed // BLOCK, BLOCK))
                found = held.result() if held is not None and held.done() and held.exception() is None else None
            self._hashing = found is not None
            return found

    def _joined(self, start: int, stop: int, size: int) -> np.ndarray:
        first, last = start // size, (stop - 1) // size
        futures = [self._get(k, size) for k in range(first, last + 1)]
        parts = []
        for k, future in enumerate(futures, first):
            block = np.frombuffer(future.result(), np.uint8)
            parts.append(block[max(0, start - k * size) : stop - k * size])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


_known: dict[Pointer, Ranged] = {}


def ranged(file: Path) -> Ranged | None:
    """Return the bytes that a pointer stands for, or None where a file is no pointer."""
    pointer = read_pointer(file)
    if pointer is None:
        return None
    if pointer not in _known:
        _known[pointer] = Ranged(pointer)
    return _known[pointer]


def _reader(pointer: Pointer) -> tuple[Read, Callable[[], None]]:
    """Return what fetches ranges of a file, and what raises where it has changed."""
    from . import store  # only where something is read by ranges

    if pointer.place.startswith("hf://"):
        return _hub_reader(pointer), lambda: None  # a commit does not change
    url = Url(scheme=urlsplit(pointer.place).scheme, text=pointer.place)
    with store.asking(url):
        speaks = store.stores(url)
        own = store.Stored(place=store.path_in_store(url), nbytes=pointer.nbytes, etag=pointer.etag)

    def read(start: int, stop: int) -> bytes:
        with store.asking(url):
            return store.read_range(speaks, own, start, stop)

    def refuse_changed() -> None:
        with store.asking(url):
            store.refuse_changed(url, {own.place: own})

    return read, refuse_changed


def _hub_reader(pointer: Pointer) -> Read:
    from . import hub

    repository, _, rest = pointer.place.removeprefix("hf://").partition("@")
    commit, _, file = rest.partition("/")
    name = HubName(repository=repository, revision=commit)

    def ask(start: int, stop: int) -> bytes:
        found = hub.read_range(name, file, commit, start, stop)
        if len(found) == pointer.nbytes:  # a server without ranges
            found = found[start:stop]
        if len(found) != stop - start:
            raise ConnectionError(f"{len(found)} bytes came in place of {stop - start}")
        return found

    def read(start: int, stop: int) -> bytes:
        with hub.asking(name, f"{repository}/{file}"):
            return retried(lambda: ask(start, stop), f"{repository}/{file}")

    return read
