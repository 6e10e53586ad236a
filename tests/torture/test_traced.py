"""Errors at the system's own calls, where Python's hooks do not see: each write of a file, reservation and rename.

Part of `make torture`, where strace is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .cases import CASES, told
from .faults import files_in
from .test_torture import ALL, COUNTS, Bench

CALLS = ("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate", "renameat2", "rename", "unlink", "mkdir")
TRACED = [case for case in CASES if not case.slow]
pytestmark = pytest.mark.skipif(not ALL or shutil.which("strace") is None, reason="`make torture` runs it with strace")


def traced(bench: Bench, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command under strace, the calls that its first thread makes in a file beside."""
    log = bench.place / "strace"
    command = [sys.executable, "-c", "from sculpt.cli.app import main; main()", *bench.case.command()]
    return subprocess.run(
        ["strace", "-f", "-qq", "-y", "-s", "0", "-o", str(log), *options, *command],
        cwd=bench.work,
        env={**os.environ, "TMPDIR": str(bench.place / "tmp")},
        capture_output=True,
        text=True,
    )


def places(log: Path, call: str, root: Path) -> list[int]:
    """Return which of the first thread's calls of a kind concern a path under a folder, counted from 1."""
    lines = [line.split(maxsplit=1) for line in log.read_text(errors="replace").splitlines()]
    own = [rest for number, rest in lines if number == lines[0][0] and re.match(rf"{call}\(", rest)]
    return [place for place, rest in enumerate(own, 1) if str(root) in rest]


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("case", TRACED, ids=lambda case: case.name)
def test_an_error_of_any_call_is_a_sentence_and_leaves_nothing(
    case: object, error: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bench = Bench(case, tmp_path_factory.mktemp("traced"))  # pyright: ignore[reportArgumentType]
    bench.reset()
    assert traced(bench, "-e", f"trace={','.join(CALLS)}").returncode == 0
    found = {call: places(bench.place / "strace", call, bench.place) for call in CALLS}
    for call, numbers in found.items():
        for number in numbers:
            bench.reset()
            what = f"{bench.case.name}: {error} of {call} {number}"
            failed = traced(bench, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={number}")
            COUNTS[f"{bench.case.name}: {error} of a call"] += 1
            own = bench.output(told(files_in(bench.work)))
            assert "Traceback" not in failed.stderr, (what, failed.stderr)
            if failed.returncode == 0:
                assert own == bench.output(bench.after), (what, failed.stderr)
            else:
                assert failed.returncode == 1, (what, failed.returncode, failed.stderr)
                assert own == bench.output(bench.inputs), (what, failed.stderr)
            bench.check_again(what)
