"""What the system does for a writer: names changed at once, bytes brought to the disk, room reserved.

`os.rename` replaces a file that has the name. Linux and macOS have a rename that does not, and one that swaps two
names; where the file system lacks them, something slower with the same result is done, or the caller is told.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV)
# Flags of Linux's `renameat2` and of macOS's `renamex_np`.
NEW, SWAP = (1, 2) if sys.platform == "linux" else (4, 2)
SYNCING_THREADS = 16  # a disk takes many requests as fast as one


@cache
def _system() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # Windows
        return None


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Rename with a flag; return False where system or file system knows no such thing."""
    name = {"linux": "renameat2", "darwin": "renamex_np"}.get(sys.platform, "")
    call = getattr(_system(), name, None) if name else None
    if call is None:
        return False
    sys.audit("os.rename", source, target, -1, -1)
    first, second = os.fsencode(source), os.fsencode(target)
    here = -100  # AT_FDCWD
    failed = call(here, first, here, second, flag) if name == "renameat2" else call(first, second, flag)
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that nothing has.

    Raises:
        FileExistsError: Something has it.
    """
    if _rename(source, target, NEW):
        return
    if source.is_dir() or not hasattr(os, "link"):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)  # what appears just now is refused, too: a folder replaces none that holds anything
        return
    os.link(source, target)
    source.unlink()


def swap(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders at once; return False where that cannot be done."""
    return _rename(first, second, SWAP)


def sync(path: Path) -> None:
    """Bring a file or the names in a folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of folders, on some network mounts
            raise
    finally:
        os.close(descriptor)


def replace_whole(file: Path, content: bytes, *, beside: Path) -> None:
    """Give a file another content: after a kill, or a power cut, it has this one or the one before.

    Args:
        beside: Where it is written first, in the same folder.
    """
    beside.write_bytes(content)
    sync(beside)
    beside.replace(file)
    sync(file.parent)


def sync_all(paths: Iterable[Path]) -> None:
    """Bring several files to the disk together."""
    with ThreadPoolExecutor(SYNCING_THREADS) as pool:
        list(pool.map(sync, paths))


def sync_tree(path: Path) -> None:
    """Bring a file, or a folder with all that lies in it, to the disk."""
    if path.is_dir():
        sync_all(sorted(path.rglob("*"), reverse=True))  # names after what they name
    sync(path)


def reserve(descriptor: int, nbytes: int) -> None:
    """Give a file its size, and the disk's promise that it will fit, where the file system makes one.

    Raises:
        OSError: The disk is full.
    """
    os.ftruncate(descriptor, nbytes)
    call = getattr(_system(), "fallocate", None) if sys.platform == "linux" else None
    # The system's own call: `os.posix_fallocate` writes to every block where the file system has no such call.
    if call is not None and nbytes and call(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise OSError(code, os.strerror(code))
