"""The shell blocks of a page: fenced as `sh`, or indented lines that begin with a program.

A block that cannot be typed here has a comment above it that says why, which no reader sees:

    <!-- not typed: needs a launcher -->
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typer.main import get_command

PROGRAMS = ("sculpt", "make", "pip", "python", "git", "docker", "accelerate", "torchrun", "srun", "hf")
MARK = re.compile(r"<!-- not typed: (.+) -->")
SHELL = {"sh", "shell", "bash", "console"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Commands that follow one another.

    Attributes:
        line: Of the page, where it begins.
        why_not: Why it cannot be typed, or None.
    """

    line: int
    commands: tuple[list[str], ...]
    why_not: str | None


def _stretches(lines: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Yield first line, language and lines of each block of code."""
    k = 0
    while k < len(lines):
        fence = re.match(r"( *)(`{3,}|~{3,})(\w*)", lines[k])
        if fence:
            end = next(n for n in range(k + 1, len(lines)) if lines[n].strip() == fence[2])
            yield k, fence[3] or "?", [line.removeprefix(fence[1]) for line in lines[k + 1 : end]]
            k = end + 1
        elif lines[k].startswith("    ") and (k == 0 or not lines[k - 1].strip() or MARK.match(lines[k - 1])):
            end = next((n for n in range(k, len(lines)) if lines[n].strip() and not lines[n].startswith("    ")), None)
            yield k, "?", [line[4:] for line in lines[k:end]]
            k = len(lines) if end is None else end
        else:
            k += 1


def shell_blocks(page: Path) -> list[Block]:
    """Return the shell blocks of a page in order."""
    lines, found = page.read_text(encoding="utf-8").splitlines(), []
    for start, language, body in _stretches(lines):
        typed = "\n".join(body).replace("\\\n", " ").splitlines()
        first = next((line.split()[0] for line in typed if line.strip()), "")
        if language in SHELL or (language == "?" and first in PROGRAMS):
            commands = tuple(words for line in typed if (words := shlex.split(line, comments=True)))
            above = next((line for line in reversed(lines[:start]) if line.strip()), "")
            mark = MARK.fullmatch(above.strip())
            found.append(Block(line=start + 1, commands=commands, why_not=mark and mark[1]))
    return found


def parsed(words: list[str]) -> None:
    """Read a command line as `sculpt` does, and run nothing."""
    from sculpt.cli.app import app_of

    command, name, arguments = get_command(app_of(words[1])), words[0], words[1:]
    context = command.make_context(name, list(arguments))
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context, arguments)  # pyright: ignore[reportAttributeAccessIssue]
        context = command.make_context(name, list(arguments), parent=context)
