"""Tiny GGUF files, written with the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from transformers.convert_slow_tokenizer import bytes_to_unicode

LAYERS, WIDTH, HEADS, VOCABULARY = 2, 32, 4, 256 + 3
RANDOM = np.random.default_rng(0)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a file is made of.

    Attributes:
        config: Of the model's class, which says what tensors there are.
        said: By keys below the architecture's name.
    """

    cls: str
    config: Mapping[str, Any]
    said: Mapping[str, Any] = field(default_factory=dict)
    name: str = "tiny"
    type: str = ""
    tied: bool = False


DENSE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCABULARY}
KV = {"num_key_value_heads": 2}
COMMON = {
    **{"block_count": LAYERS, "embedding_length": WIDTH, "attention.head_count": HEADS, "context_length": 64},
    **{"vocab_size": VOCABULARY},
}
RMS = {"attention.layer_norm_rms_epsilon": 1e-5, "attention.head_count_kv": 2, "rope.freq_base": 10000.0}
WIDE = {"feed_forward_length": 64}


def model(cls: str, config: Mapping[str, Any], said: Mapping[str, Any], **more: Any) -> Model:
    return Model(cls=cls, config={**DENSE, **config}, said={**COMMON, **said}, **more)


FFN = {"intermediate_size": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
EXPERTS_SAID = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
MODELS = {
    "llama": model("Llama", {**FFN, **KV, "attention_bias": False}, {**RMS, **WIDE, "rope.dimension_count": 8}),
    "qwen2": model("Qwen2", {**FFN, **KV}, {**RMS, **WIDE}),
    "qwen3": model("Qwen3", {**FFN, **KV, "head_dim": 16}, {**RMS, **WIDE, "attention.key_length": 16}),
    "qwen2moe": model(
        "Qwen2Moe",
        {**FFN, **KV, **EXPERTS, "shared_expert_intermediate_size": 32},
        {**RMS, **WIDE, **EXPERTS_SAID, "expert_shared_feed_forward_length": 32},
        type="qwen2_moe",
    ),
    "qwen3moe": model(
        "Qwen3Moe",
        {**FFN, **KV, **EXPERTS, "head_dim": 16},
        {**RMS, **WIDE, **EXPERTS_SAID, "attention.key_length": 16},
        type="qwen3_moe",
    ),
    "gemma2": model("Gemma2", {**FFN, **KV, "head_dim": 16}, {**RMS, **WIDE, "attention.key_length": 16}, tied=True),
    "gemma3": model(
        "Gemma3",
        {**FFN, **KV, "head_dim": 16},
        {**RMS, **WIDE, "attention.key_length": 16, "attention.sliding_window": 32},
        tied=True,
    ),
    "phi3": model("Phi3", {**FFN, **KV, "pad_token_id": None}, {**RMS, **WIDE}),
    "nemotron": model("Nemotron", {**FFN, **KV}, {**RMS, **WIDE}),
    "starcoder2": model(
        "Starcoder2", {**FFN, **KV}, {**WIDE, "attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": 2}
    ),
    "stablelm": model(
        "StableLm", {**FFN, **KV}, {**WIDE, "attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": 2}
    ),
    "gpt2": model(
        "GPT2", {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}, {**WIDE, "attention.layer_norm_epsilon": 1e-5}
    ),
    "bloom": model("Bloom", {"n_layer": LAYERS, "n_head": HEADS}, {"attention.layer_norm_epsilon": 1e-5}, tied=True),
    "falcon": model("Falcon", {}, {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}, tied=True),
    "mamba": model(
        "Mamba",
        {"state_size": 8, "conv_kernel": 4, "intermediate_size": 64, "time_step_rank": 2},
        {
            **{"ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.time_step_rank": 2, "ssm.inner_size": 64},
            "attention.layer_norm_rms_epsilon": 1e-5,
        },
        tied=True,
    ),
}


def hf_model(found: Model) -> Any:
    cls = class_of(found)
    config = cls.config_class(**found.config, tie_word_embeddings=found.tied)
    with torch.device("meta"):
        return cls(config)


def class_of(found: Model) -> Any:
    return transformers.GPT2LMHeadModel if found.cls == "GPT2" else getattr(transformers, f"{found.cls}ForCausalLM")


def stored_shape(name: str, shape: tuple[int, ...], architecture: str) -> tuple[int, ...]:
    """Return the shape that llama.cpp stores a tensor in."""
    if "ssm_conv1d.weight" in name:
        return shape[0], shape[2]
    if architecture == "gpt2" and name.endswith(("qkv.weight", "down.weight", "up.weight", "attn_output.weight")):
        return shape[::-1]
    return shape[1:] if "ffn_gate_inp_shexp" in name else shape


def names_of(found: Model, architecture: str) -> dict[str, tuple[int, ...]]:
    """Return the tensors that a file has, by transformers' own table of names."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    built = hf_model(found)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})
    state = {name: tuple(value.shape) for name, value in built.state_dict().items()}
    tensors: dict[str, tuple[int, ...]] = {}
    for name, target in get_gguf_hf_weights_map(built, processor).items():
        if name == "output.weight" and (found.tied or architecture in ("bloom", "falcon")):
            continue
        shape = state[target]
        if "_exps" in name and "down" not in name:
            shape = (shape[0], shape[1] // 2, shape[2])
        full = name if name.endswith((".weight", ".bias")) or "_exps" not in name else f"{name}.weight"
        tensors[full] = stored_shape(full, shape, architecture)
    return tensors


def write_header(writer: gguf.GGUFWriter, architecture: str, said: Mapping[str, Any]) -> None:
    for key, value in said.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](f"{architecture}.{key}", value)
    spelling = bytes_to_unicode()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([spelling[byte] for byte in range(256)] + ["<bos>", "<eos>", "th"])
    writer.add_token_types([1] * 256 + [3, 3, 1])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)


def write_said(writer: gguf.GGUFWriter) -> None:
    """Say of a tiny Llama what `write` says of it."""
    writer.add_name(MODELS["llama"].name)
    write_header(writer, "llama", MODELS["llama"].said)


def write(
    file: Path,
    architecture: str,
    *,
    kind: Type = Type.Q8_0,
    extra: Mapping[str, np.ndarray] | None = None,
    said: Mapping[str, Any] | None = None,
    found: Model | None = None,
) -> Path:
    """Write a tiny model; matrices are stored as codes, vectors and what does not divide into blocks as float32."""
    found = found or MODELS[architecture]
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_name(found.name)
    write_header(writer, architecture, {**found.said, **(said or {})})
    for name, shape in names_of(found, architecture if found is MODELS.get(architecture) else "llama").items():
        values = RANDOM.standard_normal(shape, np.float32)
        if "ssm_a" in name:
            values = -np.abs(values) - np.float32(0.1)
        if len(shape) > 1 and shape[-1] % 32 == 0 and kind is not Type.F32:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
