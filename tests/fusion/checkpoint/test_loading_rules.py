"""Which tensors make which parameters, against what transformers loads from the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from sculpt.fusion.checkpoint.loading_rules import LoadingRules, named_class

SIZES = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def _stored(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def test_a_tensor_that_is_only_renamed_is_the_parameter_that_transformers_fills(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = _stored(transformers.LlamaModel(transformers.LlamaConfig(**SIZES)), tmp_path)  # names lack `model.`
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    names = LoadingRules(loaded).sort([*tensors, "vision.weight"])
    assert names.plain["model.norm.weight"] == "norm.weight"
    assert names.unexpected == {"vision.weight"}
    assert not names.converted
    for parameter, name in names.plain.items():
        assert torch.equal(loaded.state_dict()[parameter], tensors[name])


def test_experts_are_listed_in_the_order_in_which_they_are_stacked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # Twelve, as `10` must not come before `2`.
    config = transformers.MixtralConfig(**SIZES, num_local_experts=12)
    tensors = _stored(transformers.MixtralForCausalLM(config), tmp_path)
    loaded = transformers.MixtralForCausalLM.from_pretrained(tmp_path)
    names = LoadingRules(loaded).sort(tensors)
    (down,) = [made for made in names.converted if made.first.endswith("down_proj")]
    ((_, sources),) = down.sources.items()
    assert torch.equal(loaded.state_dict()[down.first], torch.stack([tensors[name] for name in sources]))
    assert not names.unexpected


def test_the_first_class_that_transformers_has_is_taken() -> None:
    assert named_class({"architectures": ["Unknown", "AutoModel", "LlamaModel"]}) is transformers.LlamaModel
    assert named_class({"architectures": ["Unknown"]}) is None
    assert named_class(None) is None
