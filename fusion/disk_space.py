"""How much room there is on a disk, and how much is taken."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def free_bytes(path: Path) -> int:
    """Return the free bytes where a file or folder will lie."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def taken_bytes(folder: Path) -> int:
    """Return the bytes that the files under a folder take on the disk; 0 if there is none."""
    taken = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another process may take it away meanwhile
                found = os.lstat(os.path.join(path, name))
                taken += found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size
    return taken
