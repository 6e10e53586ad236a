"""The command line as an attack meets it: in this process, "y" on stdin, no network."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left behind, and what it tried."""

    code: int
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
def sculpt(sculpt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Return what runs a command line here, with someone who answers every question by "y"."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")

    def run(*arguments: str | Path, cwd: Path) -> Outcome:
        asked.clear()
        done = sculpt(*arguments, cwd=cwd)
        return Outcome(code=done.returncode, stdout=done.stdout, stderr=done.stderr, asked=tuple(asked))

    return run
