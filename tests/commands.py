"""Commands as a user types them, in this process."""

from __future__ import annotations

from sculpt.cli.app import app_of
from sculpt.fusion.errors import SculptError
from typer.testing import CliRunner, Result


def invoke(*words: object, answer: str | None = None) -> Result:
    """Run a command; what is no error of sculpt's own is raised.

    Args:
        words: The command line.
        answer: What is typed while it runs.
    """
    result = CliRunner().invoke(app_of(), [str(word) for word in words], input=answer)
    if result.exception is not None and not isinstance(result.exception, (SculptError, SystemExit)):
        raise result.exception
    return result


def run(*words: object) -> str:
    """Run a command that is to succeed, and return what it printed.

    Raises:
        SculptError: It was refused.
    """
    result = invoke(*words)
    if isinstance(result.exception, SculptError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output
