"""Which process made something, and whether it has ended."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return what tells this process from every other, on any machine."""
    own = os.getpid()
    return {"host": platform.node(), "boot": _boot(), "space": _space(), "pid": own, "started": _started(own)}


def is_gone(process: Mapping[str, Any]) -> bool:
    """Return whether a process has ended for certain: that can only be known of one on this machine."""
    here, pid = this_process(), process.get("pid")
    if process.get("host") != here["host"] or not isinstance(pid, int):
        return False
    if process.get("boot") != here["boot"]:
        return True
    if process.get("space") != here["space"]:  # another container's processes cannot be seen
        return False
    if not _is_running(pid):
        return True
    return process.get("started") != _started(pid)  # its number has been given to another


def _is_running(pid: int) -> bool:
    if os.name == "nt":
        return True  # there is no harmless way to ask
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return _stat(pid)[:1] not in (["Z"], ["X"])  # it has ended, and whoever started it has not asked how


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _space() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Return when a process began, in the system's own count; None where that is not told."""
    return next(iter(_stat(pid)[19:]), None)


def _stat(pid: int) -> list[str]:
    """Return what Linux says of a process, from its state on; nothing elsewhere."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
