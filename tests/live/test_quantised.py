"""A quantised model runs, is measured and takes an adapter as the weights that its codes stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from sculpt.fusion.checkpoint import Source, open_checkpoint
from sculpt.live.model import load_model, read_tensor
from transformers.integrations.finegrained_fp8 import Fp8Quantize

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny model in blocks of FP8, as transformers does."""
    folder = tmp_path_factory.mktemp("models") / "fp8"
    said = transformers.FineGrainedFP8Config(weight_block_size=(16, 16))
    quantiser: Any = type("Quantiser", (), {"quantization_config": said})()
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).bfloat16()
    model.config.quantization_config = said.to_dict()
    model.config.save_pretrained(folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        linear = "_proj" in name and tensor.ndim == 2
        tensors |= Fp8Quantize(quantiser).convert({name: tensor}) if linear else {name: tensor}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_quantised_model_runs_as_transformers_dequantises_it(fp8: Path) -> None:
    source, live = open_checkpoint(fp8), load_model(fp8)
    dequantised = transformers.FineGrainedFP8Config(weight_block_size=(16, 16), dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(fp8, quantization_config=dequantised)
    own, given = live.model.state_dict(), theirs.state_dict()
    assert own.keys() == given.keys() == {*source.tensors}
    for name in source.tensors:
        assert torch.equal(own[name].bfloat16(), given[name])
        assert torch.equal(read_tensor(source, name), given[name])


def test_an_adapter_goes_into_the_decoded_base(fp8: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    a, b = torch.randn(2, 32), torch.randn(48, 2)
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"], "base_model_name_or_path": ""}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    factors = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    base: Source = open_checkpoint(fp8)
    found = open_checkpoint(tmp_path, base).read(f"{name}.weight").reshape(48, 32)
    expected = read_tensor(base, f"{name}.weight").float() + b @ a
    assert np.allclose(found, expected.numpy(), atol=1e-6)
