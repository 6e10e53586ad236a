"""How far long work is: a bar on a terminal, a line twice a minute elsewhere, each step for `-v` and in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from .console import console, gigabytes, shown, speaks
from .speech import NOTE, is_quiet, log

if TYPE_CHECKING:
    from ..fusion.progress import Progress as Report

EVERY = 30.0  # seconds between lines of progress without a terminal
ROOM_FOR_BAR = 70  # cells; on a narrower terminal the figures matter more than a bar
STEP = 1.0  # between those of `-v` and of a log


@contextmanager
def progress_bar(what: str, *, unit: str = "bytes", hidden: bool = False) -> Iterator[Report]:
    """Show a bar with rate and time left while the block runs; yields what to report to.

    Without a terminal there is a line twice a minute instead. Another total than before begins another stretch of work,
    whose rate is its own.
    """
    lines = _Lines(what, unit)
    if hidden or not speaks():
        yield lambda _done, _total, _item: None
        return
    if not console.is_terminal or is_quiet():
        yield lines.report
        return
    columns: list[ProgressColumn] = [TextColumn("{task.description}")]
    if console.width >= ROOM_FOR_BAR:
        columns.append(BarColumn())
    columns += [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns += [TimeRemainingColumn(), TextColumn("{task.fields[item]}", table_column=Column(no_wrap=True, ratio=1))]
    lines.every = float("inf")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, item="")

        def report(done: int, total: int, item: str) -> None:
            lines.report(done, total, item)
            if lines.stretch.is_new:
                bar.reset(task, total=total or None, completed=done, item="")
            bar.update(task, completed=done, total=total or None, item=shown(item[-40:]))

        yield report


@final
class _Phase:
    """Work of one total: when it began, and what was done by then, of a run that was resumed."""

    def __init__(self, done: int, total: int) -> None:
        self.total, self.first, self.is_new = total, done, True
        self.start = time.monotonic()


@final
class _Lines:
    """Progress as a line now and then: some machines end a job that has been silent for ten minutes."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit, self.every = what, unit, EVERY
        self._said = self._kept = time.monotonic()
        self.stretch = _Phase(0, 0)

    def report(self, done: int, total: int, item: str) -> None:
        """Say how far it is, if that was said long ago."""
        stretch, now = self.stretch, time.monotonic()
        if stretch.total != total or done < stretch.first:
            # What a killed run left, and what went before there was a total, has no part in the rate.
            stretch = self.stretch = _Phase(done, total)
        else:
            stretch.is_new = False
        is_due = now - self._said >= self.every
        if not is_due and now - self._kept < STEP:
            return
        self._kept = now
        if is_due:
            self._said = now
        told = progress_told(done, total, self._unit, now - stretch.start, before=stretch.first)
        log.log(NOTE if is_due else logging.DEBUG, "%s: %s%s", self._what, told, item and f", {item}")


def progress_told(done: int, total: int, unit: str, seconds: float, *, before: int = 0) -> str:
    """Return how far a run is: `12 of 30 blocks, 2.4 a minute, 7:30 left`.

    Args:
        seconds: That it took to come from `before` to `done`.
    """

    def amount(number: float) -> str:
        return gigabytes(number) if unit == "bytes" else f"{number:g}"

    named = "" if unit == "bytes" else f" {unit}"
    told = f"{amount(done)} of {amount(total)}{named}" if total else f"{amount(done)}{named}"
    if done <= before or seconds <= 0:
        return f"{told}, {duration(seconds)} so far"
    rate = (done - before) / seconds
    pace = f"{gigabytes(rate)}/s" if unit == "bytes" else f"{60 * rate:.3g} a minute"
    return f"{told}, {pace}" + (f", {duration((total - done) / rate)} left" if total > done else "")


def duration(seconds: float) -> str:
    """Return a time as `7:30` or `1:07:30`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
