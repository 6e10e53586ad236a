"""The command line as an attack meets it: in this process, "y" on stdin, no network."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left behind, and what it tried."""

    code: object
    stdout: str
    stderr: str
    asked: tuple[str, ...]


class Network(BaseException):
    """Somebody reached for the network; not an Exception, so that nothing takes it for a missing file."""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Network

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def sculpt(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Return what runs a command line here, with someone who answers every question by "y"."""
    from sculpt.cli.app import main

    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")

    def run(*arguments: str | Path, cwd: Path) -> Outcome:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["sculpt", *map(str, arguments)])
        monkeypatch.setattr(os, "environ", os.environ.copy())
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        asked.clear()
        try:
            with pytest.raises(SystemExit) as left:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        told = capfd.readouterr()
        return Outcome(code=left.value.code or 0, stdout=told.out, stderr=told.err, asked=tuple(asked))

    return run
