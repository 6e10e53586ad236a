"""The app: every command, and the one table from exception to sentence and exit code.

Exit codes: 0 done, 1 refused or failed with one sentence, 2 usage, 3 a gate that was not passed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from copy import copy
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from typer.models import CommandInfo

from ..fusion.methods import METHODS
from . import (
    benchmark,
    bound,
    calibrate,
    compare,
    demo,
    evaluate,
    fuse,
    inspect,
    lora,
    lora_sparse,
    lora_sweep,
    lora_train,
    merge,
    patch,
    push,
    repair,
    report,
    rerun,
    status,
    suite,
    sweep,
    untie,
    verify,
)
from .speech import OF_COMMANDS, hearing, log
from .start import Interrupted, catch_signals

if TYPE_CHECKING:
    from ..fusion.errors import SculptError


class Commands(typer.core.TyperGroup):
    """All commands; `compare` with a suite is `benchmark`, as models are compared by their answers or by scores."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first word names, and what is left of the words."""
        if args[0] == "compare" and any(word == "--suite" or word.startswith("--suite=") for word in args):
            args = ["benchmark", *args[1:]]
        return super().resolve_command(ctx, args)


TRACEBACK = "SCULPT_TRACEBACK"  # the environment variable that shows where an unforeseen failure happened
app = typer.Typer(
    name="sculpt",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Repair a fine-tuned model that forgot, with no retraining: checkpoint surgery on safetensors.",
    epilog="Start with `sculpt repair base/ sft/`, or see it all at work with `sculpt demo`.",
)
FAMILIES = {
    "Repair": (repair, fuse, calibrate, demo),
    "Score and choose": (compare, evaluate, suite, sweep, benchmark, bound),
    "Look and check": (inspect, verify, status, report, rerun),
    "Merge several": (merge, lora, untie),
    "Keep as a patch": (patch,),
    "Publish": (push,),
    "Train without forgetting": (lora_train, lora_sweep, lora_sparse),
}
OTHER_METHODS = "Fuse by another method"
OF_NO_MODEL = ("demo", "push", "status")  # commands that read none, or none that is named
# What several processes share.
SHARING = {*METHODS, *("bound", "calibrate", "fuse", "lora-merge", "lora-train", "merge", "repair", "sweep")}


def _needs_arguments(command: CommandInfo) -> bool:
    """Return whether a command alone can only be wrong; its help, with examples, then says what to type."""
    assert command.callback is not None
    return any(parameter.default is parameter.empty for parameter in signature(command.callback).parameters.values())


def _take_options(command: CommandInfo) -> None:
    assert command.callback is not None
    if push.takes_push(command.name, signature(command.callback).parameters):
        command.callback = push.pushing(command.callback)
    command.callback = hearing(command.callback, () if command.name in OF_NO_MODEL else OF_COMMANDS)


for panel, families in FAMILIES.items():
    for family in families:
        before = len(app.registered_commands), len(app.registered_groups)
        family.register(app)
        for command in (*app.registered_commands[before[0] :], *app.registered_groups[before[1] :]):
            other = family is fuse and command.name != "fuse"
            command.rich_help_panel = OTHER_METHODS if other else panel
            if isinstance(command, CommandInfo):
                command.no_args_is_help = _needs_arguments(command)
                _take_options(command)
            elif command.typer_instance is not None:
                for inner in command.typer_instance.registered_commands:
                    _take_options(inner)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        sys.stdout.write(f"sculpt {version('checkpoint-sculpt')}\n")
        raise typer.Exit


@app.callback()
@hearing
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


def narrowed(word: str) -> typer.Typer:
    """Return the app with what `word` may mean, if anything: building the options of all commands takes 50 ms."""
    found, words = copy(app), (word, "benchmark") if word == "compare" else (word,)
    found.registered_commands = [command for command in app.registered_commands if command.name in words]
    found.registered_groups = [group for group in app.registered_groups if group.name == word]
    return found if found.registered_commands or found.registered_groups else app


def _refuse_others(word: str) -> None:
    """Refuse several processes for what does not share its work: each would do all of it, and in one another's way."""
    from ..fusion.errors import MethodError
    from ..fusion.launch import launched

    if launched().count > 1 and word not in SHARING and not word.startswith("-"):
        raise MethodError(f"`{word}` runs in one process, and {launched().count} were started")


def main() -> None:
    """Run the command line; the process ends here."""
    from ..fusion.errors import SculptError
    from .bus_error import end_with_a_sentence
    from .console import print_error, say

    catch_signals()
    end_with_a_sentence()
    try:
        try:
            word = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
            _refuse_others(word)
            narrowed(word)()
        finally:
            sys.stdout.flush()
    except SculptError as error:
        print_error(error, recipe="merge" in sys.argv[1:2])
        sys.exit(1)
    except Interrupted:
        say("interrupted; run the same command again to resume")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        _leave_stdout()
        sys.exit(1)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        _leave_stdout()
        log.debug("where it happened", exc_info=error)
        print_error(_unforeseen(error))
        sys.exit(1)


def _unforeseen(error: Exception) -> SculptError:
    """Return what is told of a failure that nobody foresaw."""
    from ..fusion.errors import SculptError, first_line, missing_extra

    if isinstance(error, ImportError) and (missing := missing_extra(error)) is not None:
        return missing
    if isinstance(error, OSError):
        return SculptError(f"{error.strerror or error}" + (f": `{error.filename}`" if error.filename else ""))
    if isinstance(error, MemoryError):
        return SculptError("this process ran out of the memory that it may use")
    return SculptError(
        f"sculpt failed unexpectedly, with {type(error).__name__}: {first_line(error)}",
        hint=f"this is a bug of sculpt: run it with `{TRACEBACK}=1`, and report what that prints",
    )


def _leave_stdout() -> None:
    """Keep what could not be written to stdout from being tried again at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
