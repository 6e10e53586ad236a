"""How long work tells where it is; in a notebook by a bar, unless the caller has another way."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from html import escape
from typing import Any, ParamSpec, Protocol, TypeVar, final

Progress = Callable[[int, int, str], None]  # done, total, in units of the caller's choice; what is being done
P = ParamSpec("P")
R = TypeVar("R")
NOTE = logging.INFO + 5  # the level of what a command says of what it does; the library's own INFO is for `-v`
EVERY = 0.2  # seconds between two looks of a bar


class Bars(Protocol):
    """Opens a bar for one stage of a work that has several; what it gives is told how far that stage is."""

    def __call__(self, what: str, *, unit: str = "bytes", hidden: bool = False) -> AbstractContextManager[Progress]:
        """Show `what` and how much of it is done, counted in `unit`, until the block ends."""
        ...


def silent(_done: int, _total: int, _what: str) -> None:
    """Tell nobody."""


def in_notebook() -> bool:
    """Return whether a notebook runs this: whatever else has IPython has no place for HTML."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


@contextmanager
def bars(what: str, *, unit: str = "bytes", hidden: bool = False) -> Iterator[Progress]:
    """Show a bar in a notebook, and nothing elsewhere: see `Bars`."""
    del unit
    if hidden or not in_notebook():
        yield silent
        return
    bar = _Bar(what)
    try:
        yield bar
    finally:
        bar.close()


def watched(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that shows a bar in a notebook while it runs, where no `progress` is given."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if "progress" in kwargs or not in_notebook():
            return function(*args, **kwargs)
        with bars(function.__name__) as report:
            kwargs["progress"] = report
            return function(*args, **kwargs)

    return run


@final
class _Bar:
    """A bar of HTML, changed in place."""

    def __init__(self, what: str) -> None:
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

        self._what, self._html, self._shown = what, HTML, 0.0
        self._handle: Any = display(HTML(self._look(0, 0, "")), display_id=True)

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show where the work is, a few times a second."""
        now = time.monotonic()
        if now - self._shown >= EVERY or done == total:
            self._shown = now
            self._handle.update(self._html(self._look(done, total, what)))

    def close(self) -> None:
        """Leave nothing behind: the result has the place."""
        self._handle.update(self._html(""))

    def _look(self, done: int, total: int, what: str) -> str:
        share = f' value="{done}" max="{total}"' if total else ""
        percent = f"{done / total:.0%}" if total else ""
        return f"{escape(self._what)} <progress{share}></progress> {percent} {escape(what)}"
