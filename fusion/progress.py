"""How long work tells where it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, total, in units of the caller's choice; what is being done


def silent(_done: int, _total: int, _what: str) -> None:
    """Tell nobody."""
