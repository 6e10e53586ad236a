"""Digests: of a file, by every algorithm that a manifest may name, and of what decides a result."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import xxhash

PIECE = 1 << 20
# What `xxh128sum`, `b3sum` and `sha256sum` print of the same file.
DIGESTS: dict[str, Callable[[], Any]] = {
    "xxh3-128": xxhash.xxh3_128,
    "blake3": blake3.blake3,
    "sha256": hashlib.sha256,
}


def digest_of_file(file: Path, algorithm: str = "xxh3-128") -> str:
    """Return `algorithm:hex` of a file's bytes, which stay no longer in memory than they are looked at."""
    digest = DIGESTS[algorithm]()
    with file.open("rb") as stream:
        if file.stat().st_size:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                for start in range(0, len(mapped), PIECE):
                    with memoryview(mapped) as view, view[start : start + PIECE] as piece:
                        digest.update(piece)
                    if hasattr(mapped, "madvise"):
                        mapped.madvise(mmap.MADV_DONTNEED, start, min(PIECE, len(mapped) - start))
    return f"{algorithm}:{digest.hexdigest()}"


def digest_of_facts(facts: Any) -> str:
    """Return the hexadecimal SHA-256 of all that decides a result: of plain values, whatever the order of their keys.

    What is no plain value is taken as it is written.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
