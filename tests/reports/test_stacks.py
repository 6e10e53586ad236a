"""Stacked layers of models whose rules are functions of a layer's number, as their configurations lie on the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sculpt.api import check_output
from sculpt.fusion.errors import MethodError, ModelError
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipe
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import Prepared

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
DEEPSEEK = {
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "q_lora_rank": 4,
    "kv_lora_rank": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_nextn_predict_layers": 0,
}
JAMBA = {
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 2,
    "use_mamba_kernels": False,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
}


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A model, the layers that are taken of it, and what the output's configuration is to say.

    Attributes:
        hub: What the hub's configuration has in place of the lists that transformers 5 saves.
    """

    name: str
    config: dict[str, Any]
    layers: int
    taken: list[tuple[int, int]]
    expected: dict[str, Any]
    hub: dict[str, Any] = field(default_factory=dict)
    lists: tuple[str, ...] = ()


SLIDING, FULL = "sliding_attention", "full_attention"
STACKS = {
    "Gemma-2's alternation": Stack(
        name="Gemma2", config={"head_dim": 8, "sliding_window": 8}, layers=4, taken=[(0, 3), (2, 4)],
        expected={"layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL]}, lists=("layer_types",),
    ),
    "Gemma-3's sliding_window_pattern": Stack(
        name="Gemma3", config={"head_dim": 8, "sliding_window": 8}, layers=7, taken=[(4, 7), (5, 7)],
        expected={"layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING]},
        hub={"sliding_window_pattern": 6}, lists=("layer_types",),
    ),
    "SmolLM3's no_rope_layer_interval": Stack(
        name="SmolLM3", config={"no_rope_layer_interval": 2}, layers=4, taken=[(0, 3), (2, 4)],
        expected={"no_rope_layers": [1, 0, 1, 1, 0]},
        hub={"no_rope_layer_interval": 2}, lists=("no_rope_layers", "layer_types"),
    ),
    "Qwen3-MoE's mlp_only_layers": Stack(
        name="Qwen3Moe", config={**EXPERTS, "head_dim": 8, "mlp_only_layers": [1]}, layers=4, taken=[(0, 3), (1, 4)],
        expected={"mlp_only_layers": [1, 3]},
    ),
    "Qwen3-MoE's decoder_sparse_step": Stack(
        name="Qwen3Moe", config={**EXPERTS, "head_dim": 8, "decoder_sparse_step": 2}, layers=4, taken=[(0, 3), (2, 4)],
        expected={"mlp_only_layers": [0, 2, 3], "decoder_sparse_step": 1},
    ),
    "DeepSeek-V3's first_k_dense_replace": Stack(
        name="DeepseekV3", config={**DEEPSEEK, "first_k_dense_replace": 2}, layers=4, taken=[(0, 1), (2, 4), (3, 4)],
        expected={"first_k_dense_replace": 1},
    ),
    "Jamba's periods": Stack(
        name="Jamba", config=JAMBA, layers=8, taken=[(2, 5), (1, 3)],
        expected={"attn_layer_period": 4, "attn_layer_offset": 0, "expert_layer_period": 2, "expert_layer_offset": 1},
    ),
    "Llama-4's interleave_moe_layer_step": Stack(
        name="Llama4", layers=4, taken=[(0, 3), (2, 4)],
        config={"head_dim": 8, "intermediate_size_mlp": 16, "num_local_experts": 2, "interleave_moe_layer_step": 2,
                "attention_chunk_size": 8},
        expected={"moe_layers": [1, 4], "no_rope_layers": [1, 1, 1, 1, 0]},
        hub={"interleave_moe_layer_step": 2}, lists=("moe_layers", "no_rope_layers", "layer_types"),
    ),
}  # fmt: skip


def write(stack: Stack, folder: Path) -> Any:
    """Write a random model as the hub has it; return its class."""
    import torch
    import transformers

    config_class = getattr(transformers, f"{stack.name}TextConfig", None) or getattr(
        transformers, f"{stack.name}Config"
    )
    cls = getattr(transformers, f"{stack.name}ForCausalLM")
    torch.manual_seed(0)
    cls(config_class(**SMALL, **stack.config, num_hidden_layers=stack.layers)).save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    kept = {key: value for key, value in config.items() if key not in stack.lists}
    file.write_text(json.dumps(kept | stack.hub))
    return cls


def prepared(folder: Path, taken: list[tuple[int, int]]) -> Prepared:
    slices = "".join(f"- sources: [{{model: model, layer_range: [{a}, {b}]}}]\n" for a, b in taken)
    (folder / "recipe.yaml").write_text(f"merge_method: passthrough\nslices:\n{slices}")
    return prepare_recipe(read_recipe(str(folder / "recipe.yaml")), output=folder / "out", near=folder)


@pytest.mark.parametrize("case", STACKS)
def test_rules_by_a_layers_number_are_those_of_the_layer_that_was_taken(case: str, tmp_path: Path) -> None:
    stack = STACKS[case]
    cls = write(stack, tmp_path / "model")
    found = prepared(tmp_path, stack.taken)
    report = check_output(found)
    assert report is not None
    assert report.told.startswith("loads: ")
    execute(found)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config[key] for key in stack.expected} == stack.expected
    _, told = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]


UNSAID = {
    "a dense layer behind experts": (STACKS["DeepSeek-V3's first_k_dense_replace"], [(0, 4), (0, 4)], "DeepseekV3MoE"),
    "attention at no period": (STACKS["Jamba's periods"], [(0, 3), (2, 8)], "JambaMambaDecoderLayer"),
}


@pytest.mark.parametrize("case", UNSAID)
def test_what_no_rule_says_is_refused(case: str, tmp_path: Path) -> None:
    stack, taken, told = UNSAID[case]
    write(stack, tmp_path / "model")
    with pytest.raises(ModelError, match=told):
        check_output(prepared(tmp_path, taken))


def test_layers_that_stay_where_they_are_change_no_rule(tmp_path: Path) -> None:
    stack = STACKS["SmolLM3's no_rope_layer_interval"]
    write(stack, tmp_path / "model")
    found = prepared(tmp_path, [(0, 2), (2, 4)])
    assert found.config == json.loads((tmp_path / "model" / "config.json").read_text())


@pytest.fixture
def predicting(tmp_path: Path) -> Path:
    """Return a DeepSeek-V3 of two layers, with what predicts further tokens behind them."""
    stack = Stack(name="DeepseekV3", config=DEEPSEEK, layers=2, taken=[], expected={})
    write(stack, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    more = {name.replace(".1.", ".2.", 1): t for name, t in tensors.items() if name.startswith("model.layers.1.")}
    save_file(tensors | more | {"model.layers.2.enorm.weight": np.ones(16, np.float32)}, file)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_nextn_predict_layers": 1}))
    return tmp_path


def test_what_predicts_further_tokens_is_no_layer(predicting: Path) -> None:
    """DeepSeek-V3#19: the files have a layer more than the configuration counts."""
    found = prepared(predicting, [(0, 2), (1, 2)])
    assert found.config is not None
    assert (found.config["num_hidden_layers"], found.config["num_nextn_predict_layers"]) == (3, 0)
    assert found.plan.notes == (
        f"`model.layers.2` of `{predicting / 'model'}`, which predicts further tokens, is left out: it is no layer",
    )
    with pytest.raises(MethodError, match="has 2 layers, and 1 to 3 are asked for"):
        prepared(predicting, [(0, 2), (1, 3)])
