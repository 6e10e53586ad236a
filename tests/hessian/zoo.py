"""Tiny random models of many architectures, saved as checkpoints in which no two elements are equal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 99


@dataclass(frozen=True)
class Animal:
    """A model to calibrate: its class, its config, and what its rows hold.

    Attributes:
        config: Makes it, or what it has beside the sizes in `SMALL`.
        rows: Row number and a seeded generator to a row of calibration data.
        quick: Whether it is run with every test, not by `make zoo` alone.
        without: Endings of the names of tensors that can have no statistics.
    """

    model: str
    config: Callable[[], Any] | dict[str, Any]
    rows: Callable[[int, torch.Generator], dict[str, Any]]
    without: tuple[str, ...] = ()
    quick: bool = False

    @property
    def class_(self) -> Any:
        """The class in transformers."""
        return getattr(transformers, self.model)

    def config_with(self, **given: Any) -> Any:
        """Return its config with some values in place of its own."""
        config = small(self.class_.config_class, **self.config) if isinstance(self.config, dict) else self.config()
        for name, value in given.items():
            setattr(config, name, value)
        return config

    def make(self) -> Any:
        """Return the model, random and tiny."""
        torch.manual_seed(0)
        return self.class_(self.config_with())


SMALL = {  # a size, and what configs call it
    name: size
    for size, names in (
        (0, "pad_token_id"),
        (1, "bos_token_id n_group topk_group n_shared_experts first_k_dense_replace mamba_n_groups"),
        (2, "eos_token_id num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers depth"),
        (
            2,
            "num_encoder_layers num_decoder_layers num_key_value_heads linear_num_key_heads index_n_heads mamba_expand",
        ),
        (2, "num_experts_per_tok num_experts_per_token top_k moe_topk moe_k"),
        (3, "num_channels"),
        (4, "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads"),
        (4, "num_encoder_attention_heads num_decoder_attention_heads linear_num_value_heads mamba_n_heads"),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts index_topk patch_size"),
        (4, "qk_rope_head_dim qk_nope_head_dim state_size time_step_rank mamba_d_state"),
        (5, "num_labels"),
        (8, "head_dim d_kv kv_channels global_head_dim swa_head_dim v_head_dim qk_head_dim index_head_dim"),
        (8, "linear_key_head_dim linear_value_head_dim q_lora_rank kv_lora_rank sliding_window attention_window"),
        (16, "mamba_d_head image_size"),
        (24, "moe_intermediate_size shared_expert_intermediate_size projection_dim"),
        (32, "hidden_size d_model n_embd dim emb_dim embedding_size"),
        (48, "hidden_dim intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner d_inner"),
        (64, "max_position_embeddings n_positions n_ctx seq_length max_seq_len"),
        (VOCAB, "vocab_size"),
    )
    for name in names.split()
}


def small(cls: Any, **given: Any) -> Any:
    """Return a config of a class with small sizes for whatever it has a size for, and what is given over them."""
    own = {entry.name for entry in dataclasses.fields(cls)}
    return cls(**{**{name: size for name, size in SMALL.items() if name in own}, **given})


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


IMAGE = 98  # the token that stands for one
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
    model = animal.make()
    make_distinct(model)
    model.save_pretrained(folder / "model", **saved)
    data = folder / "data.jsonl"
    write_rows(animal, data, num_rows=num_rows, seed=1)
    return folder / "model", data


def write_rows(animal: Animal, file: Path, *, num_rows: int, seed: int) -> None:
    """Write rows of data for a model."""
    generator = torch.Generator().manual_seed(seed)
    file.write_text("\n".join(json.dumps(animal.rows(row, generator)) for row in range(num_rows)))
