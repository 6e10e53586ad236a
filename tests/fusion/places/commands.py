"""Commands as a user types them, in this process."""

from __future__ import annotations

from sculpt.cli.app import app
from typer.testing import CliRunner, Result


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def run(*words: object) -> str:
    """Run a command that is to succeed, and return what it printed."""
    result = invoke(*words)
    assert result.exit_code == 0, (result.exception, result.output)
    return result.output
