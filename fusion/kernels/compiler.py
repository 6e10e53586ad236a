"""How kernels are compiled: bits as NumPy computes them, without the GIL, kept on disk between runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import config, njit

# No fast-math and so no fused multiply-add: the bits are those of separate operations. NumPy's error model divides
# without a check for zero, which would keep loops from being vectorised.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "boundscheck": False}
CONSTANTS = ("random.py", "sums.py", "tile.py")  # of `fusion`: their constants are compiled in


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _cache_folder() -> Path:
    """Return where compiled kernels are kept: a folder for each state of the source that goes into them.

    Numba looks at the file of the compiled function alone; a change of a helper in another file would go unnoticed.
    """
    here = Path(__file__).parent
    digest = sha256()
    for file in (here / "elements.py", here / "blocks.py", here / "compiler.py", *map(here.parent.joinpath, CONSTANTS)):
        digest.update(file.read_bytes())
    return _user_cache() / "sculpt" / f"kernels-{digest.hexdigest()[:16]}"


_FOLDER = _cache_folder()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel on its first call for each combination of dtypes, or load it from the cache."""
    settings: Any = config
    set_by_user = settings.CACHE_DIR
    try:
        settings.CACHE_DIR = set_by_user or str(_FOLDER)
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder can be written: compiled anew in each process
        return njit(**OPTIONS)(function)
    finally:
        settings.CACHE_DIR = set_by_user


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a helper into the kernels that call it."""
    return njit(forceinline=True, **OPTIONS)(function)
