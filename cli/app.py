"""The app: every command, and the one table from exception to sentence and exit code.

Exit codes: 0 done, 1 refused or failed with one sentence, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from copy import copy
from types import FrameType
from typing import Annotated

import typer

from . import (
    bound,
    calibrate,
    demo,
    evaluate,
    fuse,
    inspect,
    lora,
    lora_sparse,
    lora_train,
    merge,
    report,
    status,
    sweep,
    verify,
)

app = typer.Typer(
    name="sculpt",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Repair a fine-tuned model that forgot, with no retraining: checkpoint surgery on safetensors.",
    epilog="Start with `sculpt fuse base/ sft/`, or see it all at work with `sculpt demo`.",
)
FAMILIES = {
    "Repair": (fuse, calibrate, demo),
    "Choose a strength": (bound, evaluate, sweep),
    "Look and check": (inspect, verify, status, report),
    "Merge several": (merge, lora),
    "Train without forgetting": (lora_train, lora_sparse),
}
OTHER_METHODS = "Fuse by another method"
for panel, families in FAMILIES.items():
    for family in families:
        before = len(app.registered_commands), len(app.registered_groups)
        family.register(app)
        for command in (*app.registered_commands[before[0] :], *app.registered_groups[before[1] :]):
            other = family is fuse and command.name != "fuse"
            command.rich_help_panel = OTHER_METHODS if other else panel


class Interrupted(BaseException):
    """SIGINT or SIGTERM; not an Exception, so that an unfinished output stays for the next run to resume."""


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise Interrupted


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        sys.stdout.write(f"sculpt {version('checkpoint-sculpt')}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


def _narrowed(word: str) -> typer.Typer:
    """Return the app with the one command that `word` names, if any: building the options of all takes 50 ms."""
    found = copy(app)
    found.registered_commands = [command for command in app.registered_commands if command.name == word]
    found.registered_groups = [group for group in app.registered_groups if group.name == word]
    return found if found.registered_commands or found.registered_groups else app


def main() -> None:
    """Run the command line; the process ends here."""
    from ..fusion.errors import SculptError
    from .bus_error import end_with_a_sentence
    from .console import print_error, say

    end_with_a_sentence()
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), _interrupt)
    try:
        _narrowed(sys.argv[1] if len(sys.argv) > 1 else "")()
    except SculptError as error:
        print_error(error, recipe="merge" in sys.argv[1:2])
        sys.exit(1)
    except Interrupted:
        say("interrupted; run the same command again to resume")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
