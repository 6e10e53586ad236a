"""`action.yml`: the shell of each step runs, and each command line is one that `sculpt` takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .docs.blocks import parsed

ACTION = Path(__file__).parents[1] / "action.yml"
# `python3 -m venv FOLDER`, whose `pip` and `sculpt` note what they are told.
PYTHON = """import os, pathlib, sys
made = pathlib.Path(sys.argv[sys.argv.index("venv") + 1], "bin")
made.mkdir(parents=True)
for name in ("pip", "sculpt"):
    (made / name).symlink_to(pathlib.Path(__file__).with_name("program"))
"""
PROGRAM = """import json, pathlib, sys
words = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with pathlib.Path(__file__).resolve().with_name("typed").open("a") as file:
    file.write(json.dumps(words) + "\\n")
"""


def steps_run(folder: Path, **inputs: str) -> list[list[str]]:
    """Return what the steps typed, each run as a runner does; of `inputs` the others have their defaults."""
    action: dict[str, Any] = yaml.safe_load(ACTION.read_text())
    given = {name: str(entry.get("default", "")) for name, entry in action["inputs"].items()} | inputs
    programs, work, temporary = (folder / name for name in ("programs", "work", "a runner's"))
    for made in (programs, work, temporary):
        made.mkdir()
    for name, body in (("python3", PYTHON), ("program", PROGRAM)):
        (programs / name).write_text(f"#!{sys.executable}\n{body}")
        (programs / name).chmod(0o755)
    (folder / "path").touch()
    environment = {
        **os.environ,
        "GITHUB_ACTION_PATH": str(ACTION.parent),
        "GITHUB_PATH": str(folder / "path"),
        "RUNNER_TEMP": str(temporary),
    }
    for step in action["runs"]["steps"]:
        condition = step.get("if")
        assert condition in (None, "inputs.suite != ''")
        if condition and not given["suite"]:
            continue
        own = {name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: given[m[1]], value)
               for name, value in step.get("env", {}).items()}  # fmt: skip
        added = (folder / "path").read_text().split("\n")
        path = os.pathsep.join([*filter(None, reversed(added)), str(programs), os.environ["PATH"]])
        assert step["shell"] == "bash"
        subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
            cwd=work, env={**environment, **own, "PATH": path}, check=True, timeout=60,
        )  # fmt: skip
    return [json.loads(line) for line in (programs / "typed").read_text().splitlines()]


@pytest.mark.parametrize("gated", [False, True])
def test_every_step_types_what_sculpt_takes(gated: bool, tmp_path: Path) -> None:
    more = {"data": "my rows.jsonl", "suite": "s.yaml", "min": "pretrained>=0.95*base\n\nh-score=40\n"} if gated else {}
    pip, *typed = steps_run(tmp_path, base="org/base", tuned="a fine-tune/", **more)
    assert pip == ["pip", "install", f"{ACTION.parent}[calibrate,hub]"]
    pair, data = ["org/base", "a fine-tune/"], ["--data", "my rows.jsonl"] if gated else []
    repair = ["sculpt", "repair", *pair, *data, "--protect", "default", "-o", "repaired"]
    verify = ["sculpt", "verify", "repaired", "--input", pair[0], "--input", pair[1]]
    gate = ["sculpt", "gate", "repaired", "--suite", "s.yaml", "--base", pair[0], "--tuned", pair[1]]
    limits = ["--min", "pretrained>=0.95*base", "--min", "h-score=40", "--json"]
    assert typed == [repair, verify, *([[*gate, *limits]] if gated else [])]
    for words in typed:
        parsed(words)
    assert (tmp_path / "work/gate.json").exists() == gated
