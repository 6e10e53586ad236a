"""`docs/release-workflow.yml` runs as it stands: each step's own shell lines, on tiny folders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from sculpt.demo.tiny import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

WORKFLOW = Path(__file__).parents[1] / "docs/release-workflow.yml"
# `hf download ID` into the cache, laid out as by the real client, and `hf upload ID FOLDER .`; the hub is a folder.
HUB = """import os, pathlib, shutil, sys
verb, name, *rest = sys.argv[1:]
if verb == "download":
    cached = pathlib.Path(os.environ["HF_HUB_CACHE"], "models--" + name.replace("/", "--"))
    shutil.copytree(f"{HUB}/{name}", cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0" * 40)
else:
    shutil.copytree(rest[0], f"{HUB}/{name}")
"""


def script(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!{sys.executable}\n{body}")
    (folder / name).chmod(0o755)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a folder `release/` and no other file; model ids are folders of a hub beside it."""
    hub, here = tmp_path / "hub", tmp_path / "repository"
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    for seed, name in enumerate(("org/base", "org/tuned")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(hub / name)
        tokenizer.save_pretrained(hub / name)
    release = here / "release"
    release.mkdir(parents=True)
    rows = {
        "train": [{"prompt": "one", "completion": " two"}] * 3,
        "general": [{"text": "one and two and three"}] * 3,
        "sure": [{"prompt": "x", "choices": [" y"], "answer": 0}] * 2,  # no strength falls short of its limits
    }
    for name, content in rows.items():
        (release / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    task = "{scorer: multiple-choice, file: sure.jsonl}"
    for name in ("suite", "held-out"):
        (release / f"{name}.yaml").write_text(f"pretrained: {{known: {task}}}\ntarget: {{learned: {task}}}\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    script(programs, "sculpt", "from sculpt.cli.app import main\nmain()\n")
    script(programs, "hf", HUB.replace("{HUB}", str(hub)))
    script(programs, "pip", f"import sys\nopen({str(tmp_path / 'pip')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n")
    return here


def test_every_step_runs_in_a_repository_that_holds_the_suites_alone(repository: Path) -> None:
    job: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]["fuse"]
    python = next(step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert "cache" not in python["with"]  # wants a file of requirements
    environment = {
        **os.environ,
        "PATH": f"{repository.parent / 'programs'}:{os.environ['PATH']}",
        "BASE": "org/base",
        "TUNED": "org/tuned",
        "PROTECT": "release/general.jsonl",
        "HF_HUB_CACHE": str(repository.parent / "cache"),
    }
    for step in [step for step in job["steps"] if "run" in step]:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
            cwd=repository, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, (step["name"], done.stderr)
    evidence = next(step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))["with"]["path"]
    assert all(list(repository.glob(pattern)) for pattern in evidence.split())
    assert json.loads((repository / "gate.json").read_text())["passed"] is True
    card = ModelCard.load(repository.parent / "hub/org/tuned-repaired/README.md")
    assert card.data.base_model == ["org/base", "org/tuned"]
    assert "## Scores" in card.text
    torch_first, pinned, sculpt_then = (repository.parent / "pip").read_text().splitlines()
    assert "whl/cpu" in torch_first
    constraints = (WORKFLOW.parents[1] / "constraints.txt").read_text()
    assert f"{torch_first.split()[1]} \\\n" in constraints
    checked_out = next(step["with"]["path"] for step in job["steps"] if "path" in step.get("with", {}))
    assert pinned == f"install --no-deps --require-hashes -r {checked_out}/constraints.txt"
    assert sculpt_then == f"install --no-deps --no-build-isolation ./{checked_out}"
    assert (repository.parent / "hub/org/tuned-repaired/sculpt-provenance.json").is_file()


def test_nothing_is_used_that_somebody_could_exchange() -> None:
    """Actions go by the digest of a commit, packages by the sha256 of a file."""
    used = re.findall(r"uses: (\S+)", WORKFLOW.read_text())
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in used)
    files = sorted(WORKFLOW.parents[1].glob("constraints*.txt"))
    assert "constraints.txt" in [file.name for file in files]
    pins = [line for file in files for line in file.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in pins)
