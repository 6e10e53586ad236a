"""Where the process begins and ends: from the first line to the last a signal ends it with one sentence, or not at all.

Loading the commands takes a third of a second, and leaving them may too; in both an interrupt used to be a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """SIGINT or SIGTERM; not an Exception, so that an unfinished output stays for the next run to resume."""


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise Interrupted


def catch_signals() -> None:
    """Raise `Interrupted` where a signal comes."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)


def main() -> None:
    """Run the command line; the process ends here."""
    if not hasattr(os, "pwrite"):
        sys.stderr.write("error: sculpt writes into files by a call that Windows does not have: run it in WSL\n")
        sys.exit(1)
    try:
        catch_signals()
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by whoever started us
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (it is for as long as we are)
        from .app import main as run

        run()
    except Interrupted:
        sys.stderr.write("interrupted before anything was done\n")
        sys.exit(130)
    finally:
        for number in SIGNALS:  # what is done is done: the exit code must say so
            signal.signal(number, signal.SIG_IGN)
