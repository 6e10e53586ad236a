"""Digests of the input files, taken while their bytes are read for fusing anyway.

A byte that comes from the page cache into the processor's cache is hashed there and then used by a kernel, so that
hashing both checkpoints takes about a twentieth of the time of the fuse.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from mmap import PAGESIZE
from pathlib import Path
from typing import Any, final

import numpy as np

from ..checkpoint import Source
from ..digests import DIGESTS
from ..launch import Launch
from ..places.pointer import read_pointer
from ..places.ranges import ranged
from ..plan.step import Step
from .files import file_digest


@final
class _File:
    """A mapped file that is hashed in order, as far as its parts have been seen.

    Args:
        unread: Start and stop of the parts that no tensor task will ask for; they are hashed when it is their turn.
    """

    def __init__(self, content: np.ndarray, new_digest: Callable[[], Any], unread: Mapping[int, int]) -> None:
        self.content = content
        self._digest = new_digest()
        self._unread = unread
        self._seen: dict[int, int] = {}
        self._next = 0
        self._busy = False
        self._lock = threading.Lock()

    def see(self, start: int, stop: int) -> None:
        """Hash a part if it is its turn, and what was waiting for it. A thread that is hashing serves the others."""
        with self._lock:
            if stop <= self._next:
                return
        # Bringing pages into memory takes longer than hashing: each thread does it for its own part.
        self.content[start:stop:PAGESIZE].max(initial=0)
        with self._lock:
            self._seen[start] = stop
            if self._busy:
                return
            self._busy = True
        while (turn := self._turn()) is not None:
            self._digest.update(self.content[self._next : turn])
            self._next = turn

    def _turn(self) -> int | None:
        with self._lock:
            stop = self._seen.pop(self._next, None) or self._unread.get(self._next)
            self._busy = stop is not None
            return stop

    def finish(self) -> str:
        """Return the digest of the whole file, reading what is left."""
        self._digest.update(self.content[self._next :])
        self._next = len(self.content)
        return self._digest.hexdigest()


def _unread(num_bytes: int, read: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return the gaps between the parts that will be read."""
    gaps, position = {}, 0
    for start, stop in sorted(read):
        if start > position:
            gaps[position] = start
        position = max(position, stop)
    if position < num_bytes:
        gaps[position] = num_bytes
    return gaps


@final
class InputDigests:
    """Digests of all input files: of mapped ones as their elements are seen, of others in the background.

    Those that lie elsewhere are hashed as they come.

    Args:
        sources: Base and tuned models, in the order of a step's tensors.
        steps: What will be read. Where it is not, the rest of a file is read at the end.
        launch: This process among those that share the files.
    """

    def __init__(
        self, sources: Sequence[Source], steps: Sequence[Step], algorithm: str, launch: Launch | None = None
    ) -> None:
        rank, count = (0, 1) if launch is None else (launch.rank, launch.count)
        self._algorithm = algorithm
        self._background = ThreadPoolExecutor(1)
        mapped = {file: content for source in sources for file, content in source.mapped().items()}
        read: dict[Path, list[tuple[int, int]]] = {}
        for step in steps:
            used = enumerate((step.base, *step.tuned)) if step.num_fused else [(step.origin, step.copied_from)]
            for index, info in used:
                place = sources[index].stored(info.name) if info is not None else None
                if place is not None and place[1] < place[2]:
                    spans = read.setdefault(place[0], [])
                    if spans and spans[-1][1] == place[1]:  # steps come in the order of the files
                        spans[-1] = (spans[-1][0], place[2])
                    else:
                        spans.append(place[1:])
        every = list(dict.fromkeys(file for source in sources for file in source.all_files))
        files = [file for k, file in enumerate(every) if k * count // len(every) == rank]
        self._files = {
            file: _File(mapped[file], DIGESTS[algorithm], _unread(len(mapped[file]), read.get(file, ())))
            for file in files
            if file in mapped
        }
        self._elsewhere = [file for file in files if file not in mapped and read_pointer(file) is not None]
        for file in self._elsewhere:
            if (found := ranged(file)) is not None:
                found.hash_with(DIGESTS[algorithm])
        self._others = {
            file: self._background.submit(file_digest, file, algorithm)
            for file in files
            if file not in mapped and file not in self._elsewhere
        }

    def see(self, source: Source, name: str, start: int, stop: int) -> None:
        """Hash the file bytes of elements that were just read; any thread may call, more than once."""
        place = source.stored(name, start, stop)
        file = self._files.get(place[0]) if place else None
        if place and file:
            file.see(place[1], place[2])

    def results(self, threads: int) -> dict[Path, str]:
        """Return `algorithm:hex` of each input file of this process's share."""
        with ThreadPoolExecutor(threads) as pool:
            finished = dict(zip(self._files, pool.map(_File.finish, self._files.values()), strict=True))
        found = {file: f"{self._algorithm}:{digest}" for file, digest in finished.items()}
        found |= {file: file_digest(file, self._algorithm) for file in self._elsewhere}
        return found | {file: future.result() for file, future in self._others.items()}

    def close(self) -> None:
        """Give up what has not begun."""
        self._background.shutdown(cancel_futures=True)
