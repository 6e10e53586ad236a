"""An output says how it was made, and is made again of that; its card is one that the hub takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sculpt
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from sculpt.fusion.errors import CheckpointError, MethodError
from sculpt.fusion.record.manifest import Manifest

from ..commands import invoke, run

Pair = Callable[..., tuple[Path, Path]]


@pytest.fixture(autouse=True)
def here(make_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_pair()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sculpt"])
    return tmp_path


def make(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["sculpt", *words])
    run(*words)


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    "command",
    [
        "fuse base sft --no-calibration --gamma 0.4 --exclude *norm* --seed 3",
        "ties base sft --density 0.3 --dtype float32 --on-nonfinite keep",
        "dare base sft --sparsity 0.5 --config-from base --max-shard-size 5kB",
    ],
)
def test_the_recipe_of_an_output_makes_its_weights(command: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(monkeypatch, *command.split(), "-o", "first")
    (here / "recipe.yaml").write_text(run("recipe", "first"))
    run("merge", "recipe.yaml", "-o", "second")
    assert weights(here / "first") == weights(here / "second") != {}


def test_a_rerun_makes_every_byte_again_wherever_things_lie(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(monkeypatch, "fuse", "base", "sft", "--no-calibration", "--gamma=0.4", "-o", "fused")
    (here / "models").mkdir()
    shutil.move("sft", here / "models/sft")
    run("rerun", "fused/sculpt-manifest.json", "-o", "again/fused", "--at", "sft=models/sft")
    first = {file.name: file.read_bytes() for file in (here / "fused").iterdir()}
    assert first == {file.name: file.read_bytes() for file in (here / "again/fused").iterdir()}
    shutil.rmtree(here / "models/sft")
    shutil.copytree(here / "base", here / "models/sft")
    done = invoke("rerun", "fused", "-o", "other", "--at", "sft=models/sft")
    assert done.exit_code == 3


def test_the_hub_takes_the_card_and_it_says_what_the_inputs_say(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = "---\nlicense: apache-2.0\nlanguage: [en, de]\nbase_model: org/base\n---\n# mine\n"
    (here / "sft/README.md").write_text(card)
    config = json.loads((here / "sft/config.json").read_text())
    (here / "sft/config.json").write_text(
        json.dumps({**config, "_name_or_path": "org/sft", "architectures": ["LlamaForCausalLM"]})
    )
    make(monkeypatch, "dare", "base", "sft", "--no-load-check", "-o", "out")
    found = ModelCard.load(here / "out/README.md")
    assert found.data.to_dict() == {
        "base_model": ["org/base", "org/sft"],
        "language": ["en", "de"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "sculpt"],
    }
    for part in (
        "`org/base` and its fine-tune `org/sft`",
        "sculpt dare base sft",
        "method: dare",
        'pipeline("text-gen',
    ):
        assert part in found.text


def test_an_adapter_has_digests_and_a_card(here: Path) -> None:
    run("lora-extract", "base", "sft", "-o", "adapter", "--include", "*proj*", "--rank", "2")
    assert ModelCard.load(here / "adapter/README.md").data.library_name == "peft"
    assert "lora-extract" in run("verify", "adapter", "--input", "base", "--json")
    with pytest.raises(CheckpointError, match="not the base"):
        run("verify", "adapter", "--input", "sft")
    (here / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter_config"):
        run("verify", "adapter")


@pytest.mark.parametrize(
    "command",
    [
        "dare base sft --sparsity 0.5 --emit patch -o made.safetensors",
        "lora-extract base sft --include *proj* --rank 2 -o made",
    ],
)
def test_a_patch_and_an_adapter_are_made_again_byte_for_byte(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(monkeypatch, *command.split())
    made = Path(command.split()[-1])
    run("rerun", str(made), "-o", f"again/{made}")
    for first in [made] if made.is_file() else made.iterdir():
        assert first.read_bytes() == (here / "again" / first).read_bytes()
    (here / "base").rename("first")
    shutil.copytree("sft", "base")  # another model under the name
    shutil.copytree("first", "second")
    done = invoke("rerun", made, "-o", f"other/{made}", "--at", "sft=second")
    assert done.exit_code == 3, done.output


def test_what_python_made_is_made_again_by_its_recipe(here: Path) -> None:
    sculpt.fuse("base", "sft", output="fused", method="ties:density=0.3")
    run("rerun", "fused", "-o", "again/fused")
    named = [file.name for file in (here / "fused").iterdir() if file.name != "sculpt-manifest.json"]
    for name in named:
        assert (here / "fused" / name).read_bytes() == (here / "again/fused" / name).read_bytes()
    assert len(named) > 2


def test_what_cannot_be_made_again_is_refused_in_a_sentence(here: Path) -> None:
    sculpt.pack("base", "sft", output="packed.safetensors")
    sculpt.extract_adapter("base", "sft", output="adapter", rank=2, selection=sculpt.Selection(include=("*proj*",)))
    (here / "recipe.yaml").write_text("method: ties\nbase: base\nmodels: [sft]\n")
    sculpt.merge("recipe.yaml", output="merged")
    for made, why in (
        ("packed.safetensors", "`sculpt pack` made it of two models"),
        ("adapter", "made it from Python"),
        ("merged", "merged from Python by a recipe file"),
    ):
        with pytest.raises(MethodError, match=why):
            run("rerun", made, "-o", "again")
    with pytest.raises(MethodError, match="has no recipe"):
        run("recipe", "adapter")


def test_what_an_earlier_manifest_does_not_say_is_not_guessed(here: Path) -> None:
    sculpt.fuse("base", "sft", output="fused", method="ties:density=0.3")
    replace(Manifest.read(here / "fused"), curvature={"num_samples": 128, "seed": 0}).write(here / "fused")
    with pytest.raises(MethodError, match="does not say what its calibration was asked for"):
        run("rerun", "fused", "-o", "again")


def test_a_file_of_weights_is_made_again_under_any_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in ("base", "sft"):
        save_file({"w.weight": torch.full((4, 4), 1.0 if side == "base" else 2.0)}, here / f"{side}.safetensors")
    make(monkeypatch, "dare", "base.safetensors", "sft.safetensors", "-o", "first.safetensors")
    for made in ("first.safetensors", "first.sculpt-manifest.json"):
        run("rerun", made, "-o", "again.safetensors", "--overwrite")
        assert (here / "again.safetensors").read_bytes() == (here / "first.safetensors").read_bytes()
    save_file({"w.weight": torch.full((4, 4), 3.0)}, here / "sft.safetensors")
    done = invoke("rerun", "first.safetensors", "-o", "other.safetensors")
    assert done.exit_code == 3
    assert "not the same: it was made of other models" in done.output
