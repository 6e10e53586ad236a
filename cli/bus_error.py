"""SIGBUS as a sentence: what the system sends where a mapped file was cut, or its disk fails, while it is read.

Python's own handlers run only after the instruction that failed, which would fail for ever. So the system calls this
one at once; it ends the process, as the signal would. What was unfinished stays as it does after a kill.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

ADDRESS = 16  # of the memory that could not be read, within Linux's siginfo_t of 64 bits
WITH_INFO = 4  # SA_SIGINFO


class _Action(ctypes.Structure):
    """`struct sigaction` of glibc and musl, on 64 bits."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def _end(_signal: int, info: int, _context: int) -> None:
    file = _mapped_at(ctypes.c_size_t.from_address(info + ADDRESS).value)
    what = f"`{file}`" if file else "a mapped file"
    os.write(2, f"error: {what} was cut or could not be read while it was in use\n".encode(errors="replace"))
    os._exit(1)


def _mapped_at(address: int) -> str | None:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, *rest = line.split(maxsplit=5)
        first, _, last = span.partition("-")
        if int(first, 16) <= address < int(last, 16):
            return rest[4] if len(rest) == 5 else None
    return None


def end_with_a_sentence() -> None:
    """Have SIGBUS end the process with one sentence and exit code 1, where the system is one whose calls are known."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return
    action: Any = _Action(handler=ctypes.cast(_end, ctypes.c_void_p), flags=WITH_INFO)
    ctypes.CDLL(None).sigaction(int(signal.SIGBUS), ctypes.byref(action), None)
