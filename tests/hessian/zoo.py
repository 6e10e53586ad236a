"""Tiny random models of many architectures, saved as checkpoints in which no two elements are equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 99


@dataclass(frozen=True)
class Animal:
    """A model to calibrate: its class, its config, and what its rows hold.

    Attributes:
        rows: Row number and a seeded generator to a row of calibration data.
        without: Endings of the names of tensors that can have no statistics.
    """

    model: str
    config: Callable[[], Any]
    rows: Callable[[int, torch.Generator], dict[str, Any]]
    without: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def tokens(row: int, generator: torch.Generator, *, shortest: int = 4, longest: int = 17) -> dict[str, Any]:
    """Return a row of random token ids of random length."""
    length = int(torch.randint(shortest, longest, (1,), generator=generator))
    return {"input_ids": torch.randint(3, VOCAB, (length,), generator=generator).tolist()}


def _config(name: str, **given: Any) -> Callable[[], Any]:
    small = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return lambda: getattr(transformers, name)(**{**small, **given})


DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

TEXT = {
    "gpt2": Animal("GPT2LMHeadModel", _config("GPT2Config", n_embd=32, n_layer=2, n_head=4, n_positions=64), tokens),
    "llama": Animal("LlamaForCausalLM", _config("LlamaConfig", **DECODER, attention_bias=True), tokens),
    "llama-tied": Animal("LlamaForCausalLM", _config("LlamaConfig", **DECODER, tie_word_embeddings=True), tokens),
    "qwen2": Animal("Qwen2ForCausalLM", _config("Qwen2Config", **DECODER), tokens),
    "qwen3": Animal("Qwen3ForCausalLM", _config("Qwen3Config", **DECODER), tokens),
    "gemma": Animal("GemmaForCausalLM", _config("GemmaConfig", **DECODER), tokens),
    "gemma2": Animal("Gemma2ForCausalLM", _config("Gemma2Config", **DECODER), tokens),
    "mixtral": Animal(
        "MixtralForCausalLM",
        _config("MixtralConfig", **DECODER, num_local_experts=4, num_experts_per_tok=2),
        tokens,
    ),
    "qwen3-moe": Animal(
        "Qwen3MoeForCausalLM",
        _config("Qwen3MoeConfig", **DECODER, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2),
        tokens,
    ),
    "gpt-oss": Animal(
        "GptOssForCausalLM",
        _config("GptOssConfig", **DECODER, num_local_experts=4, num_experts_per_tok=2),
        tokens,
        without=("sinks",),
    ),
    "mamba": Animal(
        "MambaForCausalLM",
        _config("MambaConfig", hidden_size=32, num_hidden_layers=2, state_size=4, time_step_rank=4),
        tokens,
        without=("A_log",),
    ),
    "t5": Animal(
        "T5ForConditionalGeneration",
        _config("T5Config", d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0),
        tokens,
    ),
    "bert": Animal("BertForMaskedLM", _config("BertConfig", **ENCODER), tokens),
    "bert-classifier": Animal("BertForSequenceClassification", _config("BertConfig", **ENCODER), tokens),
}


def make_distinct(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every element of every parameter a value of its own, of a usual size; norms stay near 1."""
    parameters = list({id(p): p for p in model.parameters()}.values())
    total = sum(parameter.numel() for parameter in parameters)
    values = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).double()
    values = (values - total / 2 + 0.25) / total * 0.4
    start = 0
    with torch.no_grad():
        for parameter in parameters:
            own = values[start : start + parameter.numel()].reshape(parameter.shape)
            near_one = parameter.ndim == 1 and bool((parameter == 1).all())
            parameter.copy_(own + 1 if near_one else own)
            start += parameter.numel()


def settle(animal: Animal, folder: Path, *, num_rows: int = 6, **saved: Any) -> tuple[Path, Path]:
    """Save a model and its data; return the checkpoint and the data file."""
    torch.manual_seed(0)
    model = getattr(transformers, animal.model)(animal.config())
    make_distinct(model)
    model.save_pretrained(folder / "model", **saved)
    generator = torch.Generator().manual_seed(1)
    data = folder / "data.jsonl"
    data.write_text("\n".join(json.dumps(animal.rows(row, generator)) for row in range(num_rows)))
    return folder / "model", data
