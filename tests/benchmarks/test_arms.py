"""The arms of the comparison are commands that exist, with options that they have."""

from __future__ import annotations

import runpy
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import sculpt
import typer
from sculpt.benchmarks.forgetting import sequential
from sculpt.benchmarks.forgetting.rivals import RIVALS
from sculpt.cli.app import app_of

FOLDER = Path(sculpt.__file__).parent / "benchmarks" / "forgetting"
ARMS = runpy.run_path(str(FOLDER / "arms.py"))
NAMES = ("TEXT", "IMAGES", "MERGED")
COMMANDS: Any = typer.main.get_command(app_of()).commands  # pyright: ignore[reportAttributeAccessIssue]


class Named(dict[str, str]):
    """Files by what commands call them."""

    def __missing__(self, key: str) -> str:
        flag, _, name = key.rpartition(" ")
        return f"{flag} {name}.safetensors" if flag not in ("", "--each") else f"{name}.safetensors"


def steps() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        for arm in ARMS[name].values():
            for step in arm.command.split(";"):
                yield arm.name, step.format_map(Named(s="0.3", rest="0.7"))


@pytest.mark.parametrize(("arm", "step"), dict.fromkeys(steps()))
def test_the_command_takes_what_the_arm_gives_it(arm: str, step: str) -> None:
    command, *options = shlex.split(step)
    if command == "sequential":
        assert set(options[::2]) <= {"--target", "--protect", "--weight", "--alpha"}
        assert callable(sequential.main)
    elif command in RIVALS:
        known = {field.name for field in fields(RIVALS[command])}
        assert {word.partition("=")[0] for word in options if "=" in word} <= known
    else:
        COMMANDS[command].make_context(command, ["base", "tuned", *options, "-o", "out"])
