"""How places are read in this process: whole or by ranges, with which bar, and whether the network may be used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..cache import default_cache
from ..disk_space import free_bytes
from ..errors import CheckpointError
from ..progress import Bars, bars
from .names import size_told

BY_RANGES: ContextVar[bool] = ContextVar("BY_RANGES", default=False)
TRUE = ("1", "ON", "YES", "TRUE")


class Shown:
    """What shows how far a download is; the command line has bars of its own."""

    bars: Bars = staticmethod(bars)


class Offline:
    """Whether the user forbade the hub, where this process has set the variable for libraries meanwhile."""

    asked: bool | None = None


def _is_set() -> bool:
    return any(os.environ.get(name, "").upper() in TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def keep_offline() -> None:
    """Remember what the environment says, before it is changed for libraries that must fetch nothing of their own."""
    if Offline.asked is None:
        Offline.asked = _is_set()


def is_offline() -> bool:
    """Return whether the user has forbidden to ask the hub, as `HF_HUB_OFFLINE` says."""
    return _is_set() if Offline.asked is None else Offline.asked


def home_of(place: str, version: str) -> Path:
    """Return the folder in the local cache for a state of a place."""
    parts = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (place, version))
    return all_places().joinpath(*parts)


def all_places() -> Path:
    """Return the folder in the local cache for all places."""
    return default_cache() / "places"


def refuse_full_disk(
    what: object, cache: str, where: Path, nbytes: int, *, hint: str, options: Sequence[str] = (), held: int = 0
) -> None:
    """Refuse a copy for which a cache's disk has no room.

    Args:
        cache: Which one, in words.
        held: Bytes of the copy that are there already.

    Raises:
        CheckpointError: It has none.
    """
    free = free_bytes(where)
    if nbytes > free + held:
        raise CheckpointError(
            f"`{what}` takes {size_told(nbytes)} in {cache}, and its disk has {size_told(free)} free",
            hint=hint,
            options=options,
        )


def reads_by_ranges() -> bool:
    """Return whether places are read by ranges, with no copy on the disk."""
    return BY_RANGES.get()


@contextmanager
def streaming(enabled: bool = True) -> Iterator[None]:
    """Read models that lie elsewhere by ranges while the block runs: their weights are never copied to the disk.

    Of what names a model on a disk nothing changes, and no bit of any output does.
    """
    token = BY_RANGES.set(enabled)
    try:
        yield
    finally:
        BY_RANGES.reset(token)
