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


IMAGE, SOUND = 98, 97  # tokens that stand for them
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}


def image(generator: torch.Generator, size: int = 16) -> list[Any]:
    """Return a random image of three channels."""
    return torch.rand(3, size, size, generator=generator).mul(255).round().div(255).tolist()


def pictures(row: int, generator: torch.Generator) -> dict[str, Any]:
    """Return a row of an image alone."""
    return {"pixel_values": image(generator)}


def captions(row: int, generator: torch.Generator) -> dict[str, Any]:
    """Return a row of an image and a text that ends as CLIP's do."""
    ids = tokens(row, generator)["input_ids"]
    return {"pixel_values": image(generator), "input_ids": [*ids, 2]}


def sounds(row: int, generator: torch.Generator) -> dict[str, Any]:
    """Return a row of a spectrogram and its text."""
    ids = tokens(row, generator)["input_ids"]
    return {"input_features": torch.randn(16, 40, generator=generator).tolist(), "decoder_input_ids": [1, *ids]}


def questions(row: int, generator: torch.Generator, *, places: int) -> dict[str, Any]:
    """Return a row of an image and a text with `places` tokens for it."""
    ids = tokens(row, generator, longest=9)["input_ids"]
    return {"pixel_values": image(generator), "input_ids": [1, *[IMAGE] * places, *[min(k, 96) for k in ids]]}


def instructed(row: int, generator: torch.Generator) -> dict[str, Any]:
    """Return a row for InstructBLIP: the question is given to the Q-Former too."""
    found = questions(row, generator, places=4)
    return {**found, "qformer_input_ids": found["input_ids"][5:]}


def patches(row: int, generator: torch.Generator) -> dict[str, Any]:
    """Return a row for Qwen2-VL: patches of an image of any size, merged by 2 x 2."""
    high, wide = 4, 4 + 2 * (row % 2)
    pixels = torch.randn(high * wide, 3 * 2 * 4 * 4, generator=generator).tolist()
    ids = questions(row, generator, places=high * wide // 4)["input_ids"]
    kinds = [int(k == IMAGE) for k in ids]
    return {
        "pixel_values": pixels,
        "image_grid_thw": [[1, high, wide]],
        "input_ids": ids,
        "mm_token_type_ids": kinds,
    }


def _llava() -> Any:
    vision = transformers.CLIPVisionConfig(**VISION, projection_dim=32)
    return transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(vocab_size=VOCAB, **DECODER),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
    )


def _instruct_blip() -> Any:
    return transformers.InstructBlipConfig(
        vision_config=transformers.InstructBlipVisionConfig(**VISION),
        qformer_config=transformers.InstructBlipQFormerConfig(
            vocab_size=VOCAB, **ENCODER, encoder_hidden_size=32, cross_attention_frequency=2
        ),
        text_config=transformers.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=64,
        ),
        num_query_tokens=4,
        image_token_index=IMAGE,
    )


def _qwen2_vl() -> Any:
    return transformers.Qwen2VLConfig(
        text_config={
            **DECODER,
            "vocab_size": VOCAB,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=IMAGE,
        video_token_id=95,
        vision_start_token_id=93,
        vision_end_token_id=94,
    )


MEDIA = {
    "vit": Animal(
        "ViTForImageClassification",
        lambda: transformers.ViTConfig(**VISION, num_labels=5),
        pictures,
        without=("cls_token", "position_embeddings"),
    ),
    "clip": Animal(
        "CLIPModel",
        lambda: transformers.CLIPConfig(
            text_config={**ENCODER, "vocab_size": VOCAB, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
            vision_config=VISION,
            projection_dim=24,
        ),
        captions,
        without=("class_embedding", "logit_scale"),
    ),
    "whisper": Animal(
        "WhisperForConditionalGeneration",
        _config(
            "WhisperConfig",
            d_model=32,
            num_mel_bins=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_source_positions=20,
            max_target_positions=64,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        sounds,
        without=("embed_positions.weight",),
    ),
    "llava": Animal(
        "LlavaForConditionalGeneration",
        _llava,
        lambda row, generator: questions(row, generator, places=16),
        # The features come from the layer before the last, so the last and the norm after it are not reached.
        without=("class_embedding", "post_layernorm.weight", "post_layernorm.bias"),
    ),
    "instruct-blip": Animal(
        "InstructBlipForConditionalGeneration",
        _instruct_blip,
        instructed,
        without=("class_embedding", "position_embedding", "query_tokens"),
    ),
    "qwen2-vl": Animal("Qwen2VLForConditionalGeneration", _qwen2_vl, patches),
}
ALL = {**TEXT, **MEDIA}


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
