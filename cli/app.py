"""The app: every command, and the one table from exception to sentence and exit code.

Exit codes: 0 done, 1 refused or failed with one sentence, 2 usage, 3 a gate that was not passed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from typer.models import CommandInfo

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
# By panel of the help the modules that have its commands, which they are called; other methods' commands are `fuse`'s.
FAMILIES = {
    "Repair": {"repair": ("repair",), "fuse": ("fuse",), "calibrate": ("calibrate", "hessian"), "demo": ("demo",)},
    "Score and choose": {
        "compare": ("compare",),
        "evaluate": ("eval", "gate"),
        "suite": ("suite",),
        "sweep": ("sweep",),
        "benchmark": ("benchmark", "scores"),
        "bound": ("bound",),
    },
    "Look and check": {
        "inspect": ("inspect", "diff"),
        "verify": ("verify", "attest"),
        "status": ("status",),
        "report": ("report",),
        "rerun": ("recipe", "rerun"),
    },
    "Merge several": {"merge": ("merge",), "lora": ("lora-merge", "lora-extract"), "untie": ("untie",)},
    "Keep as a patch": {"patch": ("pack", "apply", "patch")},
    "Publish": {"push": ("push",)},
    "Train without forgetting": {
        "lora_train": ("lora-train",),
        "lora_sweep": ("lora-sweep",),
        "lora_sparse": ("lora-density", "lora-prune"),
    },
}
COMMANDS = {name: module for modules in FAMILIES.values() for module, names in modules.items() for name in names}
OTHER_METHODS = "Fuse by another method"
VERSION = "--version"
OF_NO_MODEL = ("demo", "push", "status")  # commands that read none, or none that is named
# What several processes share, beside the commands of other methods.
SHARING = ("bound", "calibrate", "fuse", "lora-merge", "lora-train", "merge", "repair", "sweep")


def _needs_arguments(command: CommandInfo) -> bool:
    """Return whether a command alone can only be wrong; its help, with examples, then says what to type."""
    assert command.callback is not None
    return any(parameter.default is parameter.empty for parameter in signature(command.callback).parameters.values())


def _take_options(command: CommandInfo) -> None:
    from .push import pushing, takes_push

    assert command.callback is not None
    if takes_push(command.name, signature(command.callback).parameters):
        command.callback = pushing(command.callback)
    command.callback = hearing(command.callback, () if command.name in OF_NO_MODEL else OF_COMMANDS)


def _is_method(word: str) -> bool:
    from ..fusion.methods import METHODS

    return word in METHODS


def _modules_of(word: str) -> Sequence[str]:
    """Return the modules with what a first word may mean; all where it means nothing."""
    if word == VERSION:
        return ()
    if word == "compare":
        return ("compare", "benchmark")
    if word in COMMANDS:
        return (COMMANDS[word],)
    if word and _is_method(word):
        return ("fuse",)
    return tuple(dict.fromkeys(COMMANDS.values()))


@cache
def app_of(word: str = "") -> typer.Typer:
    """Return the app with what its first word may mean: loading all commands takes 0.1 s, their options 0.3."""
    wanted = _modules_of(word)
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
    app.callback()(hearing(_options))
    for panel, modules in FAMILIES.items():
        for module in [module for module in modules if module in wanted]:
            _add(app, module, panel)
    words = (word, "benchmark") if word == "compare" else (word,)
    commands = [command for command in app.registered_commands if command.name in words]
    groups = [group for group in app.registered_groups if group.name == word]
    if commands or groups:
        app.registered_commands, app.registered_groups = commands, groups
    return app


def _add(app: typer.Typer, module: str, panel: str) -> None:
    before = len(app.registered_commands), len(app.registered_groups)
    import_module(f".{module}", __package__).register(app)
    for command in (*app.registered_commands[before[0] :], *app.registered_groups[before[1] :]):
        other = module == "fuse" and command.name != "fuse"
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


def _options(
    version: Annotated[
        bool, typer.Option(VERSION, help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


def _refuse_others(word: str) -> None:
    """Refuse several processes for what does not share its work: each would do all of it, and in one another's way."""
    from ..fusion.errors import MethodError
    from ..fusion.launch import launched

    if word in COMMANDS and word not in SHARING and launched().count > 1:
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
            word = next((word for word in sys.argv[1:] if not word.startswith("-") or word == VERSION), "")
            _refuse_others(word)
            app_of(word)()
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
