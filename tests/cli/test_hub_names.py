"""Models by their names on the hub, which the local cache holds: in every command, and in what is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sculpt.fusion.checkpoint import find_model, open_checkpoint
from sculpt.fusion.errors import CheckpointError
from sculpt.fusion.places.settings import Offline

from ..commands import invoke
from ..evaluate.conftest import llama, save

Q = "model.layers.0.self_attn.q_proj"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(hub: Path, repository: str, ref: str) -> Path:
    """Return the folder of a model in a cache as huggingface_hub lays it out."""
    home = hub / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / ref).write_text(COMMIT)
    (home / "snapshots").mkdir()
    return home / "snapshots" / COMMIT


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with `org/base`, `org/tuned@v1`, and an adapter `org/lora` of `org/base`."""
    hub = tmp_path_factory.mktemp("hub")
    base = save(llama(0), cached(hub, "org/base", "main"))
    tuned = save(llama(0), cached(hub, "org/tuned", "v1"))
    tensors = load_file(tuned / "model.safetensors")
    save_file(
        {name: tensor * np.float32(1.01) for name, tensor in tensors.items()},
        tuned / "model.safetensors",
        metadata={"format": "pt"},
    )
    rows, columns = load_file(base / "model.safetensors")[f"{Q}.weight"].shape
    adapter = cached(hub, "org/lora", "main")
    adapter.mkdir()
    rng = np.random.default_rng(0)
    factors = {"lora_A": rng.standard_normal((2, columns)), "lora_B": rng.standard_normal((rows, 2))}
    save_file(
        {f"base_model.model.{Q}.{name}.weight": factor.astype(np.float32) for name, factor in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": [Q],
        "base_model_name_or_path": "org/base",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return hub


@pytest.fixture(autouse=True)
def here(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with data and a recipe."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(Offline, "asked", True)
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "Sky is", "completion": f" {color}"} for color in ("blue", "green", "red", "grey")]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prose.jsonl").write_text('{"text": "The cat sat on the mat."}\n')
    (tmp_path / "suite.yaml").write_text("pretrained:\n  prose: {scorer: perplexity, file: prose.jsonl}\n")
    (tmp_path / "recipe.yaml").write_text("method: dare\nbase: org/base\nmodels: [org/tuned@v1]\n")
    return tmp_path


# fmt: off
COMMANDS = {
    "fuse": ["fuse", "org/base", "org/tuned@v1", "--data", "data.jsonl"],
    "fuse of an adapter": ["fuse", "org/base", "org/lora", "--no-calibration"],
    "fuse, base protected": ["fuse", "org/base", "org/tuned@v1", "--data", "data.jsonl", "--protect", "prose.jsonl"],
    "a method": ["ties", "org/base", "org/tuned@v1", "org/lora"],
    "merge": ["merge", "recipe.yaml", "-o", "out"],
    "merge between": ["merge", "dare", "--base", "org/base", "--tuned", "org/tuned@v1", "-o", "out"],
    "calibrate": ["calibrate", "org/tuned@v1", "--data", "data.jsonl", "--only-changed", "org/base"],
    "inspect": ["inspect", "org/tuned@v1"],
    "diff": ["diff", "org/base", "org/tuned@v1"],
    "bound": ["bound", "org/base", "org/tuned@v1", "--eta", "1"],
    "eval": ["eval", "org/base", "--suite", "suite.yaml", "--device", "cpu"],
    "gate": ["gate", "org/base", "--suite", "suite.yaml", "--device", "cpu", "--base", "org/base",
             "--min", "prose=0.5*base"],
    "sweep": ["sweep", "org/base", "org/tuned@v1", "--suite", "suite.yaml", "--gamma", "0.5", "--no-calibration",
              "--device", "cpu"],
    "lora-merge": ["lora-merge", "org/base", "org/lora", "-o", "out"],
    "lora-merge to an adapter": ["lora-merge", "org/base", "org/lora", "--as-adapter", "-o", "out"],
    "lora-extract": ["lora-extract", "org/base", "org/tuned@v1", "--include", "model.layers.*"],
    "lora-density": ["lora-density", "org/lora"],
    "lora-prune": ["lora-prune", "org/lora", "--density", "0.5", "-o", "out"],
    "lora-train": ["lora-train", "org/base", "--data", "data.jsonl", "-o", "out", "--method", "lora", "--epochs", "1"],
}
# fmt: on


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_name_on_the_hub(command: str) -> None:
    result = invoke(*COMMANDS[command])
    assert result.exit_code == 0, (result.exception, result.output)
    assert COMMIT not in result.output


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        (["fuse", "org/base", "org/tuned@v1", "--data", "data.jsonl"], "tuned-adadare"),
        (["merge", "recipe.yaml", "-o", "out"], "out"),
        (["lora-extract", "org/base", "org/tuned@v1", "--include", "model.layers.*"], "tuned-adapter"),
        (["lora-extract", "org/tuned@v1", "org/base", "--include", "model.layers.*"], "base-adapter"),
        (
            ["lora-train", "org/tuned@v1", "--data", "data.jsonl", "-o", "out", "--method", "lora", "--epochs", "1"],
            "out",
        ),
    ],
)
def test_what_is_written_names_what_was_asked_for(command: Sequence[str], folder: str, here: Path) -> None:
    assert invoke(*command).exit_code == 0
    written = [file for file in (here / folder).iterdir() if file.suffix in (".json", ".md")]
    texts = {file.name: file.read_text() for file in written}
    version = f'"version": "{COMMIT}"'  # of an input, in the manifest alone
    assert [name for name, text in texts.items() if COMMIT in text.replace(version, "")] == []
    if "sculpt-manifest.json" in texts:
        assert "- org/base\n- org/tuned\n" in texts["README.md"]
        assert "`org/base` and its fine-tune `org/tuned@v1`" in texts["README.md"]
        inputs = json.loads(texts["sculpt-manifest.json"])["inputs"]
        assert [found["name"] for found in inputs] == ["org/base", "org/tuned@v1"]
        assert invoke("verify", folder, "--input", "org/base", "--input", "org/tuned@v1").exit_code == 0
    else:
        config = json.loads(texts["adapter_config.json"])
        expected = {"org/base": ("org/base", None), "org/tuned@v1": ("org/tuned", "v1")}[command[1]]
        assert (config["base_model_name_or_path"], config.get("revision")) == expected
        assert str(open_checkpoint(folder).base.ref) == command[1]  # pyright: ignore[reportOptionalMemberAccess]


def test_an_adapter_finds_the_base_that_it_names(hub: Path) -> None:
    opened = open_checkpoint("org/lora")
    assert opened.base is not None
    assert (str(opened.ref), str(opened.base.ref)) == ("org/lora", "org/base")


def test_a_folder_comes_before_the_hub(here: Path) -> None:
    (here / "org" / "base").mkdir(parents=True)
    assert find_model("org/base").path == Path("org/base")


@pytest.mark.parametrize("asked", ["org/other", "org/tuned", "org/base@v9", "nowhere", "./org/base", "/org/base"])
def test_what_the_cache_does_not_hold_is_refused_by_the_name_that_was_given(asked: str) -> None:
    with pytest.raises(CheckpointError, match=f"`{asked}` does not exist"):
        find_model(asked)


def test_an_output_may_not_lie_in_the_cached_model(hub: Path) -> None:
    inside = find_model("org/tuned@v1").path / "fused"
    result = invoke("dare", "org/base", "org/tuned@v1", "-o", inside)
    assert "lies inside the input `org/tuned@v1`" in str(result.exception)
