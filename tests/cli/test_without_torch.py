"""What runs where the core alone is installed, and what is told elsewhere, before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Pair = Callable[..., tuple[Path, Path]]
RUN = """
import io, json, sys
from contextlib import redirect_stdout
from importlib.machinery import PathFinder

EXTRA = "torch transformers accelerate greenlet peft huggingface_hub tokenizers matplotlib PIL".split()

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in EXTRA else super().find_spec(name, path, target)

sys.meta_path = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
from sculpt.cli.app import _unforeseen, app_of
from sculpt.fusion.errors import SculptError

found = []
for words in json.loads(sys.argv[1]):
    try:
        with redirect_stdout(io.StringIO()):
            app_of()(words, standalone_mode=False)
        found.append(None)
    except SculptError as error:
        found.append([error.message, error.hint])
    except ImportError as error:
        told = _unforeseen(error)
        found.append([told.message, told.hint])
print(json.dumps(found))
"""


def outcomes(commands: Sequence[str], folder: Path) -> dict[str, list[str | None] | None]:
    words = [command.split() for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(words)], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_the_core_does_without_torch(make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    commands = [
        "inspect base",
        "diff base sft",
        "bound base sft",
        "fuse base sft --no-calibration -o fused",
        "fuse base sft --no-calibration --dry-run",
        "ties base sft -o ties",
        "merge dare --base base --tuned sft -o dare",
        "verify fused",
        "report fused",
        "status fused",
        "recipe fused",
        "pack base fused -o patch.safetensors",
        "apply base patch.safetensors -o again",
        "patch inspect patch.safetensors",
        "attest fused",
    ]
    assert {command: told for command, told in outcomes(commands, tmp_path).items() if told is not None} == {}
    assert (tmp_path / "again/sculpt-manifest.json").read_bytes() == (
        tmp_path / "fused/sculpt-manifest.json"
    ).read_bytes()


def test_a_path_with_a_slip_is_told_before_anything_heavy_is_imported(make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "suite.yaml").write_text("target: {known: {scorer: perplexity, file: rows.jsonl}}\n")
    commands = [
        "calibrate nope",
        "calibrate sft --data nope",
        "fuse base sft --data nope",
        "repair base sft --protect nope",
        "repair base sft --suite nope",
        "sweep base nope --suite suite.yaml",
        "sweep base sft --suite suite.yaml --data nope",
        "benchmark base nope --suite suite.yaml",
        "eval nope --suite suite.yaml",
        "gate base --suite nope --min target>=1",
        "gate base --suite suite.yaml --min target>=1*base --base nope",
        "compare base nope --prompts rows.jsonl",
        "lora-train base --data nope -o adapter",
        "lora-sweep base --data rows.jsonl --suite nope --vary rank=1 -o swept",
        "lora-density nope",
    ]
    for command, told in outcomes(commands, tmp_path).items():
        assert told is not None, command
        assert told[0] == "`nope` does not exist", command


def test_what_is_not_installed_is_told_with_what_installs_it(make_pair: Pair, tmp_path: Path) -> None:
    make_pair()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    commands = ["calibrate sft", "compare base sft --prompts rows.jsonl", "fuse base sft", "inspect org/model"]
    *heavy, hub = outcomes(commands, tmp_path).values()
    for told in heavy:
        assert told is not None
        assert told[0] in [f"this needs `{package}`, which is not installed" for package in ("torch", "transformers")]
        assert told[1] == "`pip install 'checkpoint-sculpt[calibrate]'`"
    assert hub is not None
    assert "checkpoint-sculpt[hub]" in str(hub[1])
