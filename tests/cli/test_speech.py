"""What is said beside an answer: how much, where it is kept, and how far long work is."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sculpt import api
from sculpt.cli import fuse_view, progress, speech

Pair = Callable[..., tuple[Path, Path]]


def sculpt(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sculpt", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_quiet_says_nothing_and_a_log_keeps_all_of_it(make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    done = sculpt("dare", "base", "sft", "-o", "quiet", "-q", "--log-file", "log.txt", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    failed = sculpt("-q", "dare", "base", "sft", "-o", "quiet", "--log-file", "log.txt", cwd=tmp_path)
    assert failed.stderr.startswith("error: `quiet` exists")
    log = (tmp_path / "log.txt").read_text()
    assert "NOTE wrote quiet" in log
    assert "what was done to each block" in log
    assert "ERROR `quiet` exists" in log.splitlines()[-1]
    manifest = json.loads((tmp_path / "quiet/sculpt-manifest.json").read_text())
    assert manifest["command"] == "sculpt dare base sft"


def test_what_is_likely_a_mistake_is_said_although_quiet(make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    shutil.copytree(tmp_path / "base", tmp_path / "again")
    same = "`again` and `base` are the same model: sampled values of all tensors agree\n"
    done = sculpt("dare", "base", "again", "-o", "out", "-q", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"warning: {same}")
    planned = sculpt(
        "dare",
        "base",
        "again",
        "-o",
        "out",
        *("-q", "--dry-run", "--json", "--overwrite", "--no-load-check"),
        cwd=tmp_path,
    )
    assert (planned.stderr, json.loads(planned.stdout)["notes"][0]) == (f"warning: {same}", same.strip())
    (tmp_path / "base/trainer_state.json").write_text("{}")
    swapped = sculpt("dare", "base", "sft", "-o", "swapped", "-q", cwd=tmp_path)
    assert swapped.stderr.startswith("warning: `base` holds `trainer_state.json`, a file that training writes")


def test_python_is_told_of_a_likely_mistake_by_its_logger(make_pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    base, _ = make_pair()
    same = f"`{base}` and `{base}` are the same model: sampled values of all tensors agree"
    manifest = api.fuse(base, base, output=base.with_name("out"), calibration=False)
    api.bound(base, base)
    assert [record.getMessage() for record in caplog.records] == [same, same]
    assert manifest.notes == ("`base` and `base` are the same model: sampled values of all tensors agree",)


def test_verbose_tells_the_steps(make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    done = sculpt("inspect", "base", "-v", cwd=tmp_path)
    assert "sculpt inspect base -v" in done.stderr
    assert done.stdout == sculpt("inspect", "base", cwd=tmp_path).stdout


def test_a_system_without_the_call_that_writes_is_told_in_one_sentence() -> None:
    code = "import os; del os.pwrite; from sculpt.cli.start import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Windows" in done.stderr


def test_an_error_names_the_flag_that_the_command_has(make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    done = sculpt("sweep", "base", "sft", "--suite", "x", "--calibration-batch-size", "0", cwd=tmp_path)
    assert done.stderr == "error: `--calibration-batch-size` must be at least 1, got 0\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute_with_rate_and_time_left(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """Of what this run did: what a killed one left, and what came before under another total, has no part in it."""
    caplog.set_level(logging.DEBUG, logger="sculpt")
    with progress.progress_bar("calibrating", unit="blocks") as report:
        report(0, 0, "opening")
        clock[0] += 20
        report(20, 60, "left by a killed run")
        for _ in range(40):
            clock[0] += 2
            report(20 + int((clock[0] - 20) // 4), 60, "a block")
        report(5, 30, "another stretch")
        clock[0] += 30
        report(10, 30, "another stretch")
    said = [record.getMessage() for record in caplog.records if record.levelno == speech.NOTE]
    assert said == [
        "calibrating: 22 of 60 blocks, 12 a minute, 3:10 left, a block",
        "calibrating: 30 of 60 blocks, 15 a minute, 2:00 left, a block",
        "calibrating: 37 of 60 blocks, 14.6 a minute, 1:35 left, a block",
        "calibrating: 10 of 30 blocks, 10 a minute, 2:00 left, another stretch",
    ]


def test_a_kind_that_moved_far_is_a_warning_with_the_flags_that_hold_it(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [
        {"kind": kind, "divergence": divergence, "same": 0.5, "num_tokens": 128}
        for kind, divergence in (("chats", 0.9), ("novels", 0.1), ("csv", 0.1))
    ]
    fuse_view.show_moved({"kinds": kinds, "without": []}, aside=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: `chats` moved most" in said
    assert said.endswith("To hold it, give it more weight: `--protect default --protect default/chats:3`")
    fuse_view.show_moved({"kinds": kinds, "without": []}, held_out=False, aside=True)
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("To hold it, protect more such data, or give it more weight")
