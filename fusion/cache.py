"""Where what can be made again is kept from one run to the next."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

VARIABLE = "SCULPT_CACHE"


def user_cache() -> Path:
    """Return the folder of sculpt in the user's cache folder."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "sculpt"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sculpt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sculpt"


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that other processes may read meanwhile: they find the whole of it, or what was there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}.part")
    beside.write_bytes(content)
    os.replace(beside, file)


def keep_within(folder: Path, nbytes: int) -> None:
    """Remove files of a folder, those first that were longest not written nor touched, until the others fit."""
    entries = []
    for file in folder.iterdir():
        with suppress(OSError):  # another process may remove it too
            found = file.stat()
            entries.append((found.st_mtime_ns, found.st_size, file))
    left = sum(size for _, size, _ in entries)
    for _, size, file in sorted(entries)[:-1]:  # the last is what was just written
        if left <= nbytes:
            return
        with suppress(OSError):
            file.unlink()
        left -= size


def default_cache() -> Path:
    """Return `$SCULPT_CACHE`, or the folder of sculpt in the user's cache folder."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else user_cache()
