"""Names as people's files had them: what wraps a model, other generations of names, experts stacked or apart.

Each case is one that somebody met; the project and the number of the issue stand beside it. What comes out loads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sculpt
import torch
import transformers
from safetensors.torch import load_file
from sculpt.api import prepare_fuse
from sculpt.fusion.lora.extract import extract_adapter
from sculpt.fusion.methods import TaskArithmetic
from sculpt.fusion.run.settings import Settings
from torch import Tensor

from .tiny import SIZES, loads, model, moved, pair, rewrite, saved, tensors_of

HALF = TaskArithmetic(scale=0.5)
Names = dict[str, Tensor]


def fused(base: Path, tuned: Path, output: Path, **settings: Any) -> tuple[str, ...]:
    """Fuse half of the delta; return the notes."""
    return sculpt.fuse(base, tuned, output=output, method=HALF, calibration=False, settings=Settings(**settings)).notes


def halfway(first: Any, second: Any, found: Any) -> None:
    """Check that each parameter of a loaded model is the mean of two others'."""
    others = dict(second.named_parameters())
    own = dict(found.named_parameters())
    for name, value in first.named_parameters():
        torch.testing.assert_close(own[name], (value + others[name]) / 2, atol=1e-6, rtol=1e-5)


def prefix(text: str) -> Callable[[Names], Names]:
    return lambda tensors: {text + name: tensor for name, tensor in tensors.items()}


def within(segment: str) -> Callable[[Names], Names]:
    def change(tensors: Names) -> Names:
        return {name.replace(".mlp.", f".{segment}.mlp.{segment}."): tensor for name, tensor in tensors.items()}

    return change


WRAPPED = {
    "torch.compile (pytorch#101107, timm#2003, nanoGPT#325, open_clip#639, sd-scripts#1024, eole#179)": (
        prefix("_orig_mod."),
        ["_orig_mod."],
    ),
    "torch.compile of what the head holds": (
        lambda t: {name.replace("model.", "model._orig_mod."): v for name, v in t.items()},
        ["_orig_mod."],
    ),
    "DDP": (prefix("module."), ["module."]),
    "DDP of a compiled model": (prefix("module._orig_mod."), ["module.", "_orig_mod."]),
    "PEFT": (prefix("base_model.model."), ["base_model.model."]),
    "FSDP": (within("_fsdp_wrapped_module"), ["_fsdp_wrapped_module."]),
    "activation checkpointing": (within("_checkpoint_wrapped_module"), ["_checkpoint_wrapped_module."]),
    "compiled layers": (within("_orig_mod"), ["_orig_mod."]),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_are_taken_out_of_the_output_and_said(case: str, tmp_path: Path) -> None:
    change, wrappers = WRAPPED[case]
    base, tuned = pair(tmp_path)
    before = loads(tuned)
    rewrite(tuned, change)
    notes = fused(base, tuned, tmp_path / "out")
    halfway(loads(base), before, loads(tmp_path / "out"))
    for wrapper in wrappers:
        assert any(note.startswith(f"`{wrapper}` is taken out of ") for note in notes)


def test_a_value_head_beside_the_model_is_left_to_the_policy(tmp_path: Path) -> None:
    # TRL's models with a value head: `pretrained_model.` and `v_head.*`.
    base, tuned = pair(tmp_path)
    before = loads(tuned)
    rewrite(tuned, lambda t: prefix("pretrained_model.")(t) | {"v_head.summary.weight": torch.zeros(1, 16)})
    with pytest.raises(sculpt.SculptError, match=r"^`v_head.summary.weight` is in .* and missing in the base$"):
        prepare_fuse(base, tuned, output=tmp_path / "out", method=HALF)
    fused(base, tuned, tmp_path / "out", policies=sculpt.Policies(on_extra="drop"))
    halfway(loads(base), before, loads(tmp_path / "out"))


def test_a_module_of_the_models_own_is_no_wrapper(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    for folder in (base, tuned):
        rewrite(folder, lambda t: {"module." + k if "norm" in k else k: v for k, v in t.items()})
    prepared = prepare_fuse(base, tuned, output=tmp_path / "out", method=HALF)
    assert "module.model.norm.weight" in {step.name for step in prepared.plan.steps}
    assert not prepared.plan.notes


MOE = {
    "Qwen3Moe": {"moe_intermediate_size": 8, "num_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": True},
    "Mixtral": {"num_local_experts": 3, "num_experts_per_tok": 1},
}


@pytest.mark.parametrize("apart", ["base", "tuned"])
@pytest.mark.parametrize("kind", MOE)
def test_experts_stacked_and_apart_are_the_same_experts(kind: str, apart: str, tmp_path: Path) -> None:
    # vllm#36997, vllm#42577, unsloth-zoo#647: `save_pretrained(save_original_format=False)` stacks them.
    first, second = model(kind, **MOE[kind]), moved(model(kind, **MOE[kind]))
    first.save_pretrained(tmp_path / "base", save_original_format=apart == "base")
    second.save_pretrained(tmp_path / "tuned", save_original_format=apart == "tuned")
    assert tensors_of(tmp_path / "base").keys() != tensors_of(tmp_path / "tuned").keys()
    for side in ("tuned", "base"):
        output = tmp_path / f"out-{side}"
        notes = fused(tmp_path / "base", tmp_path / "tuned", output, config_from=side)
        assert tensors_of(output).keys() == tensors_of(tmp_path / side).keys()
        halfway(first, second, loads(output))
        assert any("read by transformers' own rules" in note for note in notes)


def llava(seed: int) -> Any:
    torch.manual_seed(seed)
    text = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 1})
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    return transformers.LlavaForConditionalGeneration(config)


@pytest.mark.parametrize("old", ["base", "tuned"])
def test_generations_of_a_vision_language_models_names_are_one_model(old: str, tmp_path: Path) -> None:
    # `language_model.model.layers` became `model.language_model.layers`.
    first, second = llava(0), moved(llava(0))
    first.save_pretrained(tmp_path / "base", save_original_format=old == "base")
    second.save_pretrained(tmp_path / "tuned", save_original_format=old == "tuned")
    assert not tensors_of(tmp_path / "base").keys() & tensors_of(tmp_path / "tuned").keys()
    fused(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    halfway(first, second, loads(tmp_path / "out", "AutoModelForImageTextToText"))


def bert(head: str, **options: Any) -> Any:
    return model("Bert", head, **options)


def old_names(tensors: Names) -> Names:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("old", ["base", "tuned"])
def test_gamma_and_beta_are_weight_and_bias(old: str, tmp_path: Path) -> None:
    first, second = bert("ForMaskedLM"), moved(bert("ForMaskedLM"))
    saved(first, tmp_path / "base")
    saved(second, tmp_path / "tuned")
    rewrite(tmp_path / old, old_names)
    fused(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    halfway(first, second, loads(tmp_path / "out", "AutoModelForMaskedLM"))


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_constant_buffer_on_one_side_is_no_disagreement(side: str, tmp_path: Path) -> None:
    # mergekit#284: `embeddings.position_ids`; transformers#35255: `rotary_emb.inv_freq`.
    first, second = bert("ForMaskedLM"), moved(bert("ForMaskedLM"))
    saved(first, tmp_path / "base")
    saved(second, tmp_path / "tuned")
    rewrite(tmp_path / side, lambda t: t | {"bert.embeddings.position_ids": torch.arange(64)[None]})
    notes = fused(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    halfway(first, second, loads(tmp_path / "out", "AutoModelForMaskedLM"))
    written = tensors_of(tmp_path / "out")
    assert ("bert.embeddings.position_ids" in written) == (side == "tuned")
    assert any("left out" in note for note in notes) == (side == "base")
    base, tuned = pair(tmp_path / "llama")
    extra = {f"model.layers.{k}.self_attn.rotary_emb.inv_freq": torch.ones(4) for k in range(3)}
    rewrite(tmp_path / "llama" / side, lambda t: t | extra)
    fused(base, tuned, tmp_path / "llama-out")
    loads(tmp_path / "llama-out")


@pytest.mark.parametrize("sides", [("base",), ("tuned",), ("base", "tuned")])
def test_an_adapter_has_no_part_in_constant_buffers(sides: tuple[str, ...], tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    for side in sides:
        value = torch.full((4,), float(len(side)))
        rewrite(tmp_path / side, lambda t, value=value: t | {"model.rotary_emb.inv_freq": value})
    extract_adapter(base, tuned, output=tmp_path / "adapter", rank=2)
    assert not any("inv_freq" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))


def test_a_constant_buffer_of_both_sides_is_copied(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    for folder, value in ((base, 1.0), (tuned, 3.0)):
        rewrite(folder, lambda t, value=value: t | {"model.rotary_emb.inv_freq": torch.full((4,), value)})
    fused(base, tuned, tmp_path / "out")
    assert set(tensors_of(tmp_path / "out")["model.rotary_emb.inv_freq"].tolist()) == {3.0}


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_pooler_on_one_side_is_no_disagreement(side: str, tmp_path: Path) -> None:
    first, second = bert("Model"), moved(bert("Model"))
    saved(first, tmp_path / "base")
    saved(second, tmp_path / "tuned")
    other = {"base": "tuned", "tuned": "base"}[side]
    rewrite(tmp_path / other, lambda t: {name: tensor for name, tensor in t.items() if "pooler" not in name})
    fused(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    written = tensors_of(tmp_path / "out")
    assert ("pooler.dense.weight" in written) == (side == "tuned")


WHISPER = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_mel_bins": 8,
    "decoder_start_token_id": 1,
}


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_whispers_output_is_its_embedding(side: str, tmp_path: Path) -> None:
    # mergekit#533: `proj_out.weight` is stored by some versions.
    first = model("Whisper", "ForConditionalGeneration", **WHISPER)
    second = moved(model("Whisper", "ForConditionalGeneration", **WHISPER))
    saved(first, tmp_path / "base")
    saved(second, tmp_path / "tuned")
    rewrite(tmp_path / side, lambda t: t | {"proj_out.weight": t["model.decoder.embed_tokens.weight"]})
    fused(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    halfway(first, second, loads(tmp_path / "out", "AutoModelForSpeechSeq2Seq"))
