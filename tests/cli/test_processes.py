"""What several real processes make together against what one makes: to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..evaluate.conftest import Pair, llama, save
from .test_lora import write_adapter

Together = Callable[..., list[tuple[int, str]]]
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% endif %}"
)
SUITE = """
pretrained: {prose: {scorer: perplexity, file: prose.jsonl, score: probability}}
target: {quiz: {scorer: multiple-choice, file: quiz.jsonl}}
"""
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def all_done(found: list[tuple[int, str]]) -> None:
    assert [code for code, _ in found] == [0] * len(found), found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A Llama that chats, the same moved, adapters, and a suite beside them."""
    import torch

    folder = tmp_path_factory.mktemp("inputs")
    model = llama(0).to(torch.bfloat16)
    base = save(model, folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1).bfloat16()
    tuned = save(model, folder / "tuned")
    for one in (base, tuned):
        (one / "chat_template.jinja").write_text(CHAT)
    write_adapter(folder / "one", 1, {Q: (32, 32), UP: (64, 32)})
    write_adapter(folder / "two", 2, {Q: (32, 32)})
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "prose.jsonl").write_text('{"text": "the sea was calm"}\n{"text": "and the ship was late"}\n')
    rows = [{"prompt": f"{k} and {k} is ", "choices": ["few", "many"], "answer": k % 2} for k in range(4)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Pair(base=base, tuned=tuned)


def test_what_needs_no_model_is_shared_by_three(inputs: Pair, together: Together, tmp_path: Path) -> None:
    adapters = inputs.base.parent / "one", inputs.base.parent / "two"
    commands = (
        ("bound", inputs.base, inputs.tuned, "-o", "bounds.json"),
        ("lora-merge", inputs.base, *adapters, "--method", "ties", "--density", "0.5", "-o", "merged"),
        ("lora-merge", inputs.base, *adapters, "--as-adapter", "--method", "svd", "--rank", "2", "-o", "adapter"),
    )
    all_done(together(3, tmp_path / "3", *commands))
    all_done(together(1, tmp_path / "1", *commands))
    assert content(tmp_path / "3") == content(tmp_path / "1")


def test_a_sweep_is_shared_and_another_number_goes_on(inputs: Pair, together: Together, tmp_path: Path) -> None:
    def times_apart(folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = content(folder)
        found.pop("sweep/sweep.png", None)
        found.pop("sweep/sweep.svg", None)
        told = json.loads(found.pop("sweep/sweep.json"))
        points = [*told["points"], told["picked"]]
        return found | {
            "points": [{key: value for key, value in point.items() if "seconds" not in key} for point in points]
        }

    suite = inputs.base.parent / "suite.yaml"
    command = (
        *("sweep", inputs.base, inputs.tuned, "--suite", suite, "--gamma", "0.3,0.6", "--no-calibration"),
        *("--method", "adadare", "--method", "dare", "--pick", "avg", "-o", "sweep"),
    )
    (first, told), (second, _) = together(2, tmp_path / "several", command, dies=1)
    assert (first, second) == (1, -9)
    assert "process 1 of 2 ended before its work was done" in told
    all_done(together(3, tmp_path / "several", command))
    all_done(together(1, tmp_path / "alone", command))
    assert times_apart(tmp_path / "several") == times_apart(tmp_path / "alone")


def test_questions_are_answered_once_by_all_together(inputs: Pair, together: Together, tmp_path: Path) -> None:
    command = (
        *("fuse", inputs.base, inputs.tuned, "--protect", "default", "--protect-kinds", "novels,chats"),
        *("--protect-samples", "20", "--no-protect-check", "-o", "out"),
    )
    caches = [tmp_path / "cache 0", tmp_path / "cache 1", tmp_path / "cache"]
    own = [{"SCULPT_CACHE": str(cache)} for cache in caches]
    all_done(together(2, tmp_path / "2", command, environment=own[:2]))
    all_done(together(1, tmp_path / "1", command, environment=own[2:]))
    alone, several = (json.loads((tmp_path / n / "out/sculpt-manifest.json").read_text()) for n in "12")
    assert alone["curvature"] == several["curvature"]  # with the digest of all samples, answers among them
    [first], [one] = ([*cache.glob("answers/*")] for cache in (caches[0], caches[2]))
    kept = [file.read_text().splitlines() for file in (first, one)]
    assert set(kept[1]) <= set(kept[0])
    assert len(kept[0]) > 16  # a batch of each
    # Whatever this process had been told before, the first's answers hold for all.
    all_done(together(2, tmp_path / "again", command, environment=[own[1], own[0]]))


def test_devices_are_a_process_each_without_a_launcher(inputs: Pair, together: Together, tmp_path: Path) -> None:
    command = ["dare", inputs.base, inputs.tuned, "-o", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "sculpt", *map(str, command), "--devices", "cpu,cpu"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    all_done(together(1, tmp_path / "1", command))
    weights = Path("out/model.safetensors")
    assert (tmp_path / weights).read_bytes() == (tmp_path / "1" / weights).read_bytes()
    assert "fused" in done.stderr + done.stdout


def test_a_device_that_is_not_there_ends_the_processes_of_all(inputs: Pair, tmp_path: Path) -> None:
    def told(devices: str) -> tuple[int, str]:
        done = subprocess.run(
            [*(sys.executable, "-m", "sculpt", "dare", inputs.base, inputs.tuned, "-o", "out", "--devices", devices)],
            cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert not list(tmp_path.iterdir())
        return done.returncode, done.stderr

    code, text = told("cpu,nope")
    assert code == 1
    assert "the device `nope` cannot be used" in text
    assert "error: process 1 of 2 failed before it joined the others" in text
    code, text = told("cpu,")
    assert code == 2
    assert "lacks the name of a device" in text


def test_what_is_not_shared_is_refused(inputs: Pair, together: Together, tmp_path: Path) -> None:
    found = together(2, tmp_path / "2", ("lora-extract", inputs.base, inputs.tuned, "-o", "adapter"))
    assert [code for code, _ in found] == [1, 1]
    assert "`lora-extract` runs in one process, and 2 were started" in found[0][1]
    all_done(together(2, tmp_path / "2", ("--help",)))
    found = together(2, tmp_path / "2", ("lora-extracd",))
    assert "'lora-extract'" in found[0][1]
    found = together(2, tmp_path / "2", ("bound", inputs.base, inputs.tuned))
    assert "2 processes can share this only with an output" in found[0][1]
