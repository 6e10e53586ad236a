"""What a terminal sees is text: no escape codes of a file's making, no traceback, whatever happens and whenever."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sculpt.cli.console import paragraphs, print_json, show_chart, shown, table

Sculpt = Callable[..., Any]
ESCAPES = "\x1b]0;pwn\x07\x1b[2J\r\x9b1m\u202e\u2066"
OBEYED = {character for character in ESCAPES if not character.isprintable()}


def test_escape_codes_in_names_are_shown_and_not_obeyed(sculpt: Sculpt, tmp_path: Path) -> None:
    for name in ("base", "sft"):
        (tmp_path / name).mkdir()
        save_file({f"{ESCAPES}.weight": np.zeros((4, 4), np.float32)}, tmp_path / name / "model.safetensors")
    (tmp_path / "other").mkdir()
    save_file({f"{ESCAPES}.weight": np.zeros((4, 5), np.float32)}, tmp_path / "other" / "model.safetensors")
    for command in ("inspect base", "inspect base --json", "diff base sft", "fuse base other --no-calibration -o x"):
        done = sculpt(*command.split(), cwd=tmp_path)
        assert not OBEYED & set(done.stdout + done.stderr), command
        assert "x1b]0;pwn" in done.stdout + done.stderr or command.startswith("diff") or "\\u001b" in done.stdout


def test_json_stays_json_and_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": f"γ{ESCAPES}\ud800"})
    told = capsys.readouterr().out
    assert json.loads(told) == {"name": f"γ{ESCAPES}\ud800"}
    assert not OBEYED & set(told)
    assert "γ" in told


def test_what_is_shown_is_unharmed_where_it_was_harmless() -> None:
    assert shown("γ, δ, × and – in `モデル`") == "γ, δ, × and – in `モデル`"


def test_a_failure_that_nobody_foresaw_is_one_line_with_a_way_to_report_it(
    sculpt: Sculpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    save_file({"w": np.zeros(4, np.float32)}, tmp_path / "m" / "model.safetensors")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("sculpt.fusion.checkpoint.folder.open_file", fail)
    done = sculpt("inspect", "m", cwd=tmp_path)
    assert done.code == 1
    assert "failed unexpectedly, with ZeroDivisionError: division by zero" in done.stderr
    assert "SCULPT_TRACEBACK=1" in done.stderr
    assert "Traceback" not in done.stderr


def _run(*arguments: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sculpt", *arguments]
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True, **options)


def test_a_full_stdout_is_one_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full")
    (tmp_path / "m").mkdir()
    save_file({"w": np.zeros(4, np.float32)}, tmp_path / "m" / "model.safetensors")
    with open("/dev/full", "w") as full:
        process = _run("inspect", "m", "--json", cwd=tmp_path, stdout=full)
        told = process.communicate()[1]
    assert process.returncode == 1
    assert told.startswith("error: ")
    assert "No space left" in told
    assert "Traceback" not in told


WHILE_LOADING = """
class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), NUMBER)

sys.meta_path.insert(0, Interrupting())
"""
AT_EXIT = "import atexit; atexit.register(os.kill, os.getpid(), NUMBER)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("script", "code"), [(WHILE_LOADING, 130), (AT_EXIT, 0)], ids=["while loading", "at exit"])
def test_a_signal_before_and_after_the_command_is_no_traceback(number: int, script: str, code: int) -> None:
    before = f"import os, sys\nsys.argv = ['sculpt', '--version']\n{script.replace('NUMBER', str(int(number)))}\n"
    command = [sys.executable, "-c", before + "from sculpt.cli.start import main\nmain()"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_escape_codes_in_columns_charts_and_names_beside_text_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    table(ESCAPES, [f"a{ESCAPES}", f"b{ESCAPES}"], [[ESCAPES, "1"]])
    show_chart(ESCAPES, f"1 ┤ {ESCAPES}\n0 ┤", asked=True)
    paragraphs([(ESCAPES, f"said {ESCAPES}")])
    told = capsys.readouterr().out
    assert not OBEYED & set(told)
    assert told.count("x1b]0;pwn") == 8
