"""Adapters that bring tokens, and those whose names training left wrapped: what PEFT's own merge makes of them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sculpt.fusion.checkpoint import Checkpoint, open_checkpoint
from sculpt.fusion.errors import CheckpointError

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
ROWS, MORE = 61, 65
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": ROWS,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what the tests are about
        yield


def make(folder: Path, *, grows: bool = False, tied: bool = False, dtype: Any = torch.float32, **options: Any) -> None:
    """Write a base, an adapter of it, and PEFT's merge of both."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    if grows:
        model.resize_token_embeddings(MORE)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], **options))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    tuned.save_pretrained(folder / "adapter")
    tuned.merge_and_unload().save_pretrained(folder / "merged")


CASES: dict[str, dict[str, Any]] = {
    "new tokens, embeddings and head trained": {"grows": True, "modules_to_save": ["embed_tokens", "lm_head"]},
    "new tokens that are not trained": {"grows": True},
    "new tokens of a tied model": {"grows": True, "tied": True},
    "trainable tokens": {"trainable_token_indices": [3, 60, 7]},
    "trainable tokens of a tied model": {"trainable_token_indices": [0, 1], "tied": True},
    "trainable tokens by module": {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [5]}},
    "new tokens, some of them trained": {"grows": True, "trainable_token_indices": [3, 62, 64]},
    "new tokens of a tied model, some of them trained": {
        "grows": True,
        "tied": True,
        "trainable_token_indices": [3, 62, 64],
    },
    "trainable tokens of a base in bfloat16": {"trainable_token_indices": [3, 7], "dtype": torch.bfloat16},
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_adapter_makes_of_tokens_is_what_peft_does(case: str, tmp_path: Path) -> None:
    make(tmp_path, **CASES[case])
    tuned, expected = open_checkpoint(tmp_path / "adapter", tmp_path / "base"), Checkpoint(tmp_path / "merged")
    assert set(tuned.tensors) == set(expected.tensors)
    for name, info in expected.tensors.items():
        assert tuned.tensors[name].shape == info.shape
        found, wanted = (source.read(name).astype(np.float32) for source in (tuned, expected))
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        cut = info.num_elements // 3 + 5
        pieces = [tuned.read(name, 0, cut), tuned.read(name, cut, info.num_elements)]
        assert np.concatenate(pieces).tobytes() == tuned.read(name).tobytes()
    assert (tuned.config or {})["vocab_size"] == (expected.config or {})["vocab_size"]


def test_a_fuse_with_new_tokens_loads(tmp_path: Path) -> None:
    from sculpt.api import fuse
    from sculpt.fusion.methods.adadare import AdaDare

    make(tmp_path, **CASES["new tokens, embeddings and head trained"])
    method = AdaDare(gamma=1.0, sparsity=0.0)
    fuse(tmp_path / "base", tmp_path / "adapter", output=tmp_path / "out", method=method, calibration=False)
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([[1, 2, MORE - 1]])
    torch.testing.assert_close(found(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-4)


def test_an_adapter_with_new_tokens_can_be_run(tmp_path: Path) -> None:
    from sculpt.hessian import calibrate

    make(tmp_path, **CASES["new tokens, embeddings and head trained"])
    (tmp_path / "d.jsonl").write_text(json.dumps({"input_ids": [1, 2, MORE - 1]}))
    found = calibrate(tmp_path / "adapter", data=tmp_path / "d.jsonl", only_changed=tmp_path / "base")
    assert found.provenance.num_tokens == 3
    assert "lm_head.weight" in found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(folder, modules_to_save=["lm_head"])
    return folder


WRAPPED: dict[str, Callable[[str], str]] = {
    "twice by PEFT": lambda name: f"base_model.model.{name}",
    "three times": lambda name: f"base_model.model.base_model.model.{name}",
    "with the adapter's name": lambda name: name.replace(".weight", ".default.weight") if "lora_" in name else name,
    "with another name": lambda name: name.replace(".weight", ".mine.weight") if "lora_" in name else name,
    "compiled": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod.", 1),
    "compiled outside": lambda name: f"_orig_mod.{name}",
    "in parallel": lambda name: f"module.{name}",
    "by FSDP": lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
    "by checkpointing": lambda name: name.replace("mlp.", "_checkpoint_wrapped_module.mlp."),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrapped_names_are_repaired_and_said(
    case: str, plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = Path(shutil.copytree(plain / "adapter", tmp_path / "adapter"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({WRAPPED[case](name): value for name, value in tensors.items()}, adapter / "adapter_model.safetensors")
    found, expected = (open_checkpoint(folder, plain / "base") for folder in (adapter, plain / "adapter"))
    assert set(found.tensors) == set(expected.tensors)
    assert all(found.read(name).tobytes() == expected.read(name).tobytes() for name in expected.tensors)
    assert "are wrapped: `" in caplog.text


REFUSED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], dict[str, Any], str]] = {
    "an empty factor": (lambda t: {**t, next(n for n in t if "lora_A" in n): torch.zeros(0)}, {}, "is empty"),
    "rank 0": (lambda t: t, {"r": 0}, "rank below 1"),
    "tokens that are not there": (
        lambda t: t,
        {"trainable_token_indices": [1]},
        "trains tokens .* and holds none of them",
    ),
    "two adapters": (
        lambda t: {**t, **{n.replace(".weight", ".other.weight"): v + 1 for n, v in t.items() if "lora_" in n}},
        {},
        "are both `",
    ),
    "two heads": (
        lambda t: {**t, "base_model.model.lm_head.modules_to_save.weight": t["base_model.model.lm_head.weight"] + 1},
        {},
        "adapts `lm_head.weight` twice",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_are_damaged_are_refused(case: str, plain: Path, tmp_path: Path) -> None:
    change, entries, message = REFUSED[case]
    adapter = Path(shutil.copytree(plain / "adapter", tmp_path / "adapter"))
    save_file(change(load_file(adapter / "adapter_model.safetensors")), adapter / "adapter_model.safetensors")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entries}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(adapter, plain / "base")


def test_a_base_of_codes_is_told_to_be_one(plain: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(plain / "base", tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = torch.zeros(512, 1, dtype=torch.uint8)
    tensors[f"{name}.absmax"] = torch.zeros(16)
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds bitsandbytes 4-bit codes, scaled by"):
        open_checkpoint(plain / "adapter", base)
