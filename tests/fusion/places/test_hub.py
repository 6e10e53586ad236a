"""Models of the hub that the cache lacks are fetched, by huggingface_hub from a server on this machine."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sculpt.fusion.checkpoint import find_model, open_checkpoint
from sculpt.fusion.errors import CheckpointError
from sculpt.fusion.places.choose import needed

from ...commands import run
from .local_hub import LocalHub

Pair = Callable[..., tuple[Path, Path]]


def refused(asked: str) -> tuple[str, str]:
    with pytest.raises(CheckpointError) as caught:
        find_model(asked)
    return caught.value.message, caught.value.hint or ""


def test_two_revisions_of_a_model_make_the_bytes_that_their_folders_make(
    hub: LocalHub, make_pair: Pair, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, tuned = make_pair()
    v1, v2 = hub.put("org/model", base, "v1"), hub.put("org/model", tuned, "v2")
    with caplog.at_level(logging.INFO):
        run("dare", "org/model@v1", "org/model@v2", "-o", "fetched")
    assert "org/model@v1: fetching " in caplog.text
    assert " kB in 3 files from the hub" in caplog.text
    run("dare", base, tuned, "-o", "local")
    for file in Path("local").glob("model*"):
        assert file.read_bytes() == (Path("fetched") / file.name).read_bytes()
    inputs = json.loads(Path("fetched/sculpt-manifest.json").read_text())["inputs"]
    assert [(one["name"], one["version"]) for one in inputs] == [("org/model@v1", v1), ("org/model@v2", v2)]
    assert all("version" not in one for one in json.loads(Path("local/sculpt-manifest.json").read_text())["inputs"])
    before = len(hub.requests)
    run("verify", "fetched", "--input", "org/model@v1", "--input", "org/model@v2")
    assert len(hub.requests) == before  # all of it is in the cache


def test_one_form_of_the_weights_is_fetched_and_nothing_that_is_no_part_of_the_model(
    hub: LocalHub, make_pair: Pair
) -> None:
    base, _ = make_pair()
    other = {
        "pytorch_model.bin": b"0" * 5000,
        "consolidated.safetensors": b"0" * 5000,
        "onnx/model.onnx": b"0" * 5000,
        "model.Q4_K_M.gguf": b"0" * 5000,
        "tf_model.h5": b"0" * 5000,
        "flax_model.msgpack": b"0" * 5000,
        "training_args.bin": b"0" * 5000,
        ".gitattributes": b"",
    }
    kept = {"README.md": b"# card", "tokenizer.json": b"{}", "1_Pooling/config.json": b"{}", "extra.safetensors": b"0"}
    files = {file.name: file.read_bytes() for file in base.iterdir()}
    hub.put("org/model", {**files, **other, **kept})
    folder = find_model("org/model").path
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}
    assert found == {*files, *kept}
    assert not [path for _, path, _ in hub.requests if any(path.endswith(name) for name in other)]


def test_of_two_forms_of_an_adapter_one_is_needed() -> None:
    names = ["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "README.md", "optimizer.pt"]
    assert needed(names, lambda _: b"") == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert needed(names[:2], lambda _: b"") == ["adapter_config.json", "adapter_model.bin"]


def test_of_a_pipeline_one_form_of_each_model_is_needed() -> None:
    index = json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.safetensors"}}).encode()
    kept = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00001.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ]
    others = [
        "v1-5-pruned.safetensors",
        "v1-5-pruned.ckpt",
        "text_encoder/pytorch_model.bin",
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "onnx/unet.onnx",
    ]
    assert needed([*kept, *others], lambda _: index) == kept


def test_of_several_gguf_files_one_is_to_be_named(hub: LocalHub) -> None:
    hub.put("org/model", {"m.Q4_K_M.gguf": b"4", "m.Q8_0.gguf": b"8", "config.json": b"{}"})
    message, hint = refused("org/model")
    assert message == "there are 2 GGUF files, and each is a model"
    assert "PLACE:m.Q4_K_M.gguf" in hint
    assert find_model("org/model:m.Q8_0.gguf").path.read_bytes() == b"8"


def test_a_folder_or_a_file_of_a_repository_is_a_model(hub: LocalHub, make_pair: Pair, here: Path) -> None:
    base, tuned = make_pair(shards=1)
    files = {f"base/{file.name}": file.read_bytes() for file in base.iterdir()}
    files |= {f"deep/tuned/{file.name}": file.read_bytes() for file in tuned.iterdir()}
    files["deep/tuned/chat_template.jinja"] = b"{{ messages }}"
    hub.put("org/many", files, "v1")
    output = run("dare", "org/many@v1:base", "org/many@v1:deep/tuned/", "-o", "out")
    assert not [
        path
        for _, path, _ in hub.requests
        if path.endswith("/model.safetensors") and "resolve" not in path and "cdn" not in path
    ]
    assert Path("out/model.safetensors").is_file(), output
    assert find_model("org/many@v1:deep/tuned").path.name == "tuned"
    assert open_checkpoint("org/many@v1:base/model.safetensors").files[0].name == "model.safetensors"
    assert "its folders: base, deep/tuned" in refused("org/many@v1:nowhere")[1]


def test_a_slip_in_a_path_is_told_as_both(hub: LocalHub, here: Path) -> None:
    (here / "sft").mkdir()
    message, hint = refused("sft/v2")
    assert message == "`sft/v2` does not exist: neither a path here nor a model on the hub"
    assert "HF_TOKEN" in hint


@pytest.mark.parametrize(
    "asked", ["nowhere", "sft/model.safetensors", "data/train.jsonl", "./org/model", "/org/model", "a/b/c"]
)
def test_the_hub_is_not_asked_for_what_is_no_name_there(hub: LocalHub, asked: str) -> None:
    hub.put(asked.strip("./"), {"model.safetensors": b""})
    assert f"`{asked}` does not exist" in refused(asked)[0]
    assert hub.requests == []


def test_an_adapters_base_is_not_fetched_unless_it_is_named(hub: LocalHub, make_pair: Pair, here: Path) -> None:
    hub.put("org/base", make_pair()[0])
    (here / "adapter").mkdir()
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": "org/base",
    }
    (here / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="its base is not at hand") as caught:
        open_checkpoint("adapter")
    assert "`org/base`" in (caught.value.hint or "")
    assert hub.requests == []


def test_a_private_model_takes_the_token_of_the_environment(
    hub: LocalHub, make_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/secret", make_pair()[0])
    hub.repositories["org/secret"].private = True
    hub.tokens.add("hf_right")
    assert "neither a path here nor a model on the hub" in refused("org/secret")[0]
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert find_model("org/secret").path.is_dir()


@pytest.mark.parametrize(
    ("status", "told", "hint"),
    [
        (401, "the hub refuses to give `org/model`", "is the token right"),
        (429, "too many requests", "try again in 7 seconds"),
        (503, "by status 503", "try again later"),
    ],
)
def test_what_the_hub_answers_is_one_sentence(
    hub: LocalHub, make_pair: Pair, status: int, told: str, hint: str
) -> None:
    hub.put("org/model", make_pair()[0])
    hub.faults["GET /api/models/"] = [status] * 20
    message, advice = refused("org/model")
    assert told in message
    assert hint in advice


def test_gated_models_revisions_and_an_absent_hub_are_told(
    hub: LocalHub, make_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("org/model", make_pair()[0], "v1")
    assert "the hub has `org/model`, without revision `v9`" in refused("org/model@v9")[0]
    hub.gated.add("org/model")
    assert "`org/model` is gated" in refused("org/model")[0]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in refused("org/other")[0]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = len(hub.requests)
    message, hint = refused("org/model@v1")
    assert "`HF_HUB_OFFLINE` forbids" in message
    assert "hf download org/model" in hint
    assert len(hub.requests) == before


def test_a_fetch_goes_on_from_the_files_that_are_there(hub: LocalHub, make_pair: Pair) -> None:
    hub.put("org/model", make_pair()[0])
    hub.faults["GET /cdn/.*/model-00002"] = [404] * 9
    refused("org/model")
    hub.faults.clear()
    first = len(hub.asked_for("model-00001-of-00002.safetensors"))
    assert first == 1
    assert open_checkpoint("org/model").tensors
    assert len(hub.asked_for("model-00001-of-00002.safetensors")) == first


def test_what_is_there_in_part_is_fetched_and_not_taken_for_whole(hub: LocalHub, make_pair: Pair) -> None:
    from huggingface_hub import hf_hub_download

    hub.put("org/model", make_pair()[0])
    hf_hub_download("org/model", "config.json", endpoint=hub.url)
    assert open_checkpoint("org/model").tensors


def test_a_command_of_its_own_finds_the_hub_by_the_environment(hub: LocalHub, make_pair: Pair, here: Path) -> None:
    hub.put("org/model", make_pair()[0])
    environment = {**os.environ, "HF_HOME": str(here / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "sculpt", "diff", "org/model", "org/model", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"org/model: fetching \d+ kB in 3 files from the hub\n", done.stderr)
    assert all(tensor["changed"] == 0 for tensor in json.loads(done.stdout)["tensors"])


def test_no_name_leads_out_of_the_folder_that_it_is_put_in() -> None:
    names = ["__0_0.distcp", ".metadata", "../.metadata", "../../out.metadata", "x/../../.metadata", "../x.distcp"]
    assert needed(names, lambda _: b"") == [".metadata", "__0_0.distcp"]
