"""How much is said beside an answer, and where it is kept: `-q`, `-v` and `--log-file` of every command.

Notes, warnings and errors are records of this package's logger, as the library's own are. One handler shows them on
stderr, another writes them to a file with the time.
"""

from __future__ import annotations

import functools
import inspect
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..fusion.places.settings import streaming
from ..fusion.progress import NOTE

PANEL = "Notes and progress"
PLANS = ("dry_run", "print_plan")  # options by which nothing but a plan is made
STREAM = "Read the weights of models on the hub or behind a URL by ranges, with no copy on the disk."
log = logging.getLogger(__name__.partition(".")[0])


class Speech:
    """What is shown of the records: notes and warnings; with `-q` warnings alone; with `-v` everything."""

    threshold = NOTE


def is_quiet() -> bool:
    """Return whether notes and progress are left out."""
    return Speech.threshold > NOTE


def hearing(function: Callable[..., None], options: Sequence[inspect.Parameter] = ()) -> Callable[..., None]:
    """Return a command, or what stands before all of them, that takes the options too; a command further ones."""
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def heard(*, quiet: bool, verbose: bool, log_file: Path | None, stream: bool = False, **values: Any) -> None:
        if quiet or verbose:
            Speech.threshold = logging.WARNING if quiet else logging.DEBUG
        if log_file is not None:
            _keep(log_file)
        _show_downloads()
        log.debug("Python %s on %s: %s", sys.version.split()[0], sys.platform, shlex.join(["sculpt", *sys.argv[1:]]))
        # A plan takes no more than what the headers say.
        with streaming(stream or any(values.get(name) for name in PLANS)):
            function(**values)

    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()]
    parameters = [*own, *OPTIONS, *options]
    del heard.__wrapped__
    heard.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
    heard.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return heard


def _show_downloads() -> None:
    from ..fusion.places.settings import Shown
    from .progress import progress_bar

    Shown.bars = progress_bar


def _keep(file: Path) -> None:
    from ..fusion.errors import OutputError

    try:
        handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"the log `{file}` cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def _option(name: str, kind: Any, default: Any, *flags: str, text: str, panel: str = PANEL) -> inspect.Parameter:
    option = Annotated[kind, typer.Option(*flags, help=text, rich_help_panel=panel)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)


OPTIONS = (
    _option("quiet", bool, False, "-q", "--quiet", text="No notes and no progress; warnings and errors stay."),
    _option("verbose", bool, False, "-v", "--verbose", text="Say more: steps as lines, and where a failure happened."),
    _option("log_file", Path | None, None, "--log-file", text="Add all that is said to this file, with the time."),
)
OF_COMMANDS = (_option("stream", bool, False, "--stream", text=STREAM, panel="Places"),)
logging.addLevelName(NOTE, "NOTE")
log.setLevel(logging.DEBUG)  # what is shown or kept is the handlers' choice
