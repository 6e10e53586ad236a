"""The one loader of whole models: as `from_pretrained` loads them, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sculpt.fusion.errors import ModelError
from sculpt.live.model import load_model
from transformers import dynamic_module_utils

CODE = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, width=4, **given):
        super().__init__(**given)
        self.width = width


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.inner = nn.Linear(config.width, config.width)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, inputs):
        return self.inner(inputs)
"""


def _llama(**given: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=11, **{**sizes, **given})
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _llama().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_computes_what_transformers_computes(folder: Path) -> None:
    tokens = torch.arange(6).reshape(1, 6)
    expected = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with load_model(folder, device="cpu") as live:
        assert live.model.dtype == torch.float32  # on a CPU, whatever is stored
        assert not live.model.training
        assert live.path == folder
        with torch.no_grad():
            assert torch.equal(live.model(tokens).logits, expected(tokens).logits)


def test_one_file_of_weights_is_the_folder_it_lies_in(folder: Path) -> None:
    whole, single = load_model(folder, device="cpu"), load_model(folder / "model.safetensors", device="cpu")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, single.model.state_dict()[name])
    assert single.path == folder


def test_weights_that_are_lacking_are_refused_where_transformers_makes_them_up(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks `model\.norm\.weight`, which `LlamaForCausalLM` needs"):
        load_model(folder, device="cpu")


def test_a_model_that_is_to_be_trained_is_never_streamed(folder: Path) -> None:
    with load_model(folder, device="cpu", may_stream=False, memory_bytes=1) as live:
        assert not live.streamed
        assert {parameter.device.type for parameter in live.model.parameters()} == {"cpu"}


def test_code_in_the_folder_runs_only_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers copies the code to its cache, which is the user's own.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(CODE)
    auto = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    config = {"model_type": "own", "architectures": ["OwnModel"], "width": 3, "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"inner.weight": torch.arange(9.0).reshape(3, 3), "inner.bias": torch.ones(3)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelError, match="needs the code that lies in it to run"):
        load_model(folder, device="cpu")
    with load_model(folder, device="cpu", trust_remote_code=True) as live:
        assert type(live.model).__name__ == "OwnModel"
        assert torch.equal(live.model(torch.ones(1, 3)), torch.tensor([[4.0, 13.0, 22.0]]))
