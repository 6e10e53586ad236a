"""An adapter over its base is what PEFT 0.21's `merge_and_unload` makes of it in float32."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
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
from torch import nn

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what the tests are about
        yield


def llama(**changes: Any) -> Any:
    options = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 61,
        "attention_bias": True,
        **changes,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))


def gpt2() -> Any:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=41, n_positions=16, bos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


def llava() -> Any:
    text = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=39)
    return transformers.LlavaForConditionalGeneration(config)


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        num_local_experts=3,
    )
    return transformers.MixtralForCausalLM(config)


def gpt_oss() -> Any:
    config = transformers.GptOssConfig(
        hidden_size=16,
        intermediate_size=16,  # square down projections, stored (experts, d_in, d_out)
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=40,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    return transformers.GptOssForCausalLM(config)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(6, 8, 3)
        self.two = nn.Conv2d(3, 8, (3, 2), bias=False)
        self.dot = nn.Conv2d(8, 5, 1)
        self.three = nn.Conv3d(2, 4, 2)
        self.flat = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2)


LLAMA_LINEAR = ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "llama": (llama, {"target_modules": LLAMA_LINEAR}),
    "rslora": (llama, {"target_modules": LLAMA_LINEAR, "use_rslora": True, "r": 5}),
    "patterns": (
        llama,
        {
            "target_modules": LLAMA_LINEAR,
            "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\..*": 6, "^model.layers.0.mlp.up_proj": 2, "j_proj": 9},
            "alpha_pattern": {"mlp.up_proj": 32, "proj": 64, r"model.layers.0.self_attn.[qk]_proj": 2},
        },
    ),
    "dora": (llama, {"target_modules": [*LLAMA_LINEAR, "embed_tokens"], "use_dora": True}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "saved": (llama, {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "bias all": (llama, {"target_modules": ["v_proj", "o_proj"], "bias": "all"}),
    "bias lora_only": (llama, {"target_modules": ["v_proj", "o_proj"], "bias": "lora_only"}),
    "lora bias": (llama, {"target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
    "named parameters": (
        llama,
        {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight", "norm.weight"][:1]},
    ),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_fc", "mlp.c_proj"], "fan_in_fan_out": True}),
    "gpt2 square": (gpt2, {"target_modules": ["attn.c_proj", "wte"], "fan_in_fan_out": False}),
    "gpt2 dora": (gpt2, {"target_modules": ["c_attn", "c_proj", "wpe"], "use_dora": True, "fan_in_fan_out": True}),
    "gpt2 bias": (gpt2, {"target_modules": ["c_attn"], "bias": "all", "lora_bias": True, "fan_in_fan_out": True}),
    "convolutions": (Convolutions, {"target_modules": ["one", "two", "dot", "three", "flat"], "r": 2}),
    "convolutions dora": (Convolutions, {"target_modules": ["one", "two", "dot", "three"], "use_dora": True}),
    "convolutions bias": (Convolutions, {"target_modules": ["one", "dot"], "lora_bias": True}),
    "llava": (llava, {"target_modules": ["q_proj", "down_proj", "fc1", "linear_1", "patch_embedding"]}),
    "llava saved": (llava, {"target_modules": ["q_proj"], "modules_to_save": ["multi_modal_projector", "lm_head"]}),
    "mixtral": (mixtral, {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "experts.down_proj"]}),
    "mixtral router": (mixtral, {"target_modules": [], "target_parameters": ["mlp.gate.weight"], "use_rslora": True}),
    "gpt-oss": (gpt_oss, {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}),
}


def make_pair(
    folder: Path, build: Callable[[], Any], options: dict[str, Any], *, seed: int = 0
) -> tuple[Path, Path, Path]:
    """Write a base, an adapter with random factors, and PEFT's merge; return their folders."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = build()
    base, adapter, merged = folder / "base", folder / "adapter", folder / "merged"
    save_model(model, base)
    tuned = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            moved = torch.rand_like(parameter) + 0.5 if "magnitude" in name else torch.randn_like(parameter) * 0.3
            parameter.data = parameter.data * moved if "magnitude" in name else moved
        elif parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    tuned.save_pretrained(adapter)
    save_model(tuned.merge_and_unload(), merged)
    return base, adapter, merged


def save_model(model: Any, folder: Path) -> None:
    if isinstance(model, transformers.PreTrainedModel):
        model.save_pretrained(folder, max_shard_size="20KB")
        return
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")


def values(checkpoint: Checkpoint, name: str) -> np.ndarray:
    return checkpoint.read(name).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_over_its_base_is_pefts_merge(case, tmp_path):
    base, adapter, merged = make_pair(tmp_path, *CASES[case])
    tuned, expected, before = open_checkpoint(adapter, base), Checkpoint(merged), Checkpoint(base)
    assert set(tuned.tensors) == set(expected.tensors)
    changed = 0
    for name in expected.tensors:
        found, wanted = values(tuned, name), values(expected, name)
        assert tuned.tensors[name].shape == expected.tensors[name].shape
        assert np.abs(found - wanted).max() <= 1e-6 * max(1.0, np.abs(wanted).max()), name
        changed += bool((wanted != values(before, name)).any())
    assert changed == sum(
        bool((values(tuned, name) != values(before, name)).any())
        for name in tuned.tensors
        if name in (tuned.changed or ())
    )
    assert changed > 0


@pytest.mark.parametrize("case", ["llama", "dora", "gpt2 dora", "convolutions", "mixtral", "gpt-oss"])
def test_a_range_holds_the_same_bits_as_the_whole(case, tmp_path):
    base, adapter, _ = make_pair(tmp_path, *CASES[case])
    tuned = open_checkpoint(adapter, base)
    rng = np.random.default_rng(0)
    for name, info in tuned.tensors.items():
        if name not in (tuned.changed or ()):
            continue
        whole = tuned.read(name).copy()
        tuned.release(name)
        cuts = [0, *sorted(rng.integers(0, info.num_elements, 4)), info.num_elements]
        pieces = [tuned.read(name, a, b) for a, b in itertools.pairwise(cuts)]
        assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_a_large_product_runs_compiled_with_the_same_bits(monkeypatch):
    from sculpt.fusion.checkpoint.adapter import low_rank

    rng = np.random.default_rng(1)
    left = rng.standard_normal((2, 70, 5), np.float32)
    right = rng.standard_normal((2, 5, 1500), np.float32)
    product = low_rank.LowRank(left=left, right=right, scale=0.3)
    by_numpy = product.delta(17, 190_000)
    monkeypatch.setattr(low_rank, "COMPILED_FROM", 0)
    assert product.delta(17, 190_000).tobytes() == by_numpy.tobytes()
    exact = (0.3 * (left.astype(np.float64) @ right.astype(np.float64))).reshape(-1)[17:190_000]
    np.testing.assert_allclose(by_numpy, exact, rtol=2e-7, atol=1e-12)


def edit_config(adapter: Path, **entries: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pair(tmp_path_factory.mktemp("pair"), *CASES["llama"])[:2]


@pytest.fixture
def editable(pair, tmp_path):
    return pair[0], Path(shutil.copytree(pair[1], tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"peft_type": "VERA"}, "of type VERA"),
        ({"peft_type": "LOHA"}, "of type LOHA"),
        ({"peft_type": "OFT"}, "of type OFT"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"trainable_token_indices": [1, 2]}, "holds none of them"),
        ({"init_lora_weights": "pissa_niter_4"}, "takes a part out of the base"),
        ({"r": "many"}, "malformed"),
        ({"rank_pattern": {"(": 2}}, "malformed"),
        ({"r": 5}, "fit none of"),
    ],
)
def test_other_kinds_of_adapter_are_refused_by_name(entries, words, editable):
    base, adapter = editable
    edit_config(adapter, **entries)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(adapter, base)


def edit_weights(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def rename_q(tensors: dict[str, torch.Tensor]) -> None:
    for leaf in ("lora_A.weight", "lora_B.weight"):
        tensors[f"{Q.replace('q_proj', 'query')}.{leaf}"] = tensors.pop(f"{Q}.{leaf}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename_q, "which is not in the base"),
        (lambda t: t.pop(f"{Q}.lora_A.weight"), "in place of one A and one B"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 31)}), "fit none of"),
        (lambda t: t.update({f"{Q}.lora_diag": torch.zeros(4)}), "of a kind that sculpt does not know"),
        (lambda t: t.update({f"{Q}.lora_B.bias": torch.zeros(9)}), "not in the base"),
    ],
)
def test_factors_that_do_not_fit_the_base_are_refused(change, words, editable):
    base, adapter = editable
    edit_weights(adapter, change)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(adapter, base)


def test_an_output_that_the_base_ties_is_not_merged_into_the_embeddings(tmp_path):
    base, adapter, _ = make_pair(tmp_path, lambda: llama(tie_word_embeddings=True), {"target_modules": ["lm_head"]})
    with pytest.raises(CheckpointError, match="tied to the embeddings"):
        open_checkpoint(adapter, base)


def test_old_and_new_names_of_a_model_find_each_other(tmp_path):
    base, adapter, _ = make_pair(tmp_path, *CASES["llava"])
    expected = {name: values(open_checkpoint(adapter, base), name) for name in Checkpoint(base).tensors}
    model = transformers.LlavaForConditionalGeneration.from_pretrained(base)
    renamed = Path(shutil.copytree(base, tmp_path / "renamed", ignore=shutil.ignore_patterns("*safetensors*")))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, renamed / "model.safetensors")

    def to_old_names(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            module = name.removeprefix("base_model.model.").removeprefix("model.")
            module = module.replace("language_model.", "language_model.model.")
            tensors[f"base_model.model.{module}"] = tensors.pop(name)

    edit_weights(adapter, to_old_names)
    for folder in (base, renamed):
        tuned = open_checkpoint(adapter, folder)
        for name, value in expected.items():
            new = name if folder == base else to_new_name(name)
            assert np.array_equal(values(tuned, new), value), new


def to_new_name(name: str) -> str:
    name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model.", "model.language_model.")
    return name if name.startswith(("lm_head", "model.")) else f"model.{name}"


def test_an_attention_module_of_torch_is_refused(tmp_path):
    base, adapter, _ = make_pair(tmp_path, Convolutions, {"target_modules": ["attention"]})
    with pytest.raises(CheckpointError, match="`MultiheadAttention` `attention`"):
        open_checkpoint(adapter, base)


def test_names_that_the_base_shares_need_no_model(pair):
    code = (
        "import sys; from sculpt.fusion.checkpoint import open_checkpoint; "
        f"open_checkpoint({str(pair[1])!r}, {str(pair[0])!r}).read('model.layers.0.self_attn.q_proj.weight'); "
        "print([name for name in ('torch', 'transformers', 'numba') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_adapter_alone_names_its_base(pair, tmp_path):
    base, adapter = pair[0], Path(shutil.copytree(pair[1], tmp_path / "adapter"))
    edit_config(adapter, base_model_name_or_path="somebody/some-model")
    with pytest.raises(CheckpointError, match="base is not at hand"):
        open_checkpoint(adapter)
    edit_config(adapter, base_model_name_or_path=str(base))
    assert open_checkpoint(adapter).fingerprint == open_checkpoint(adapter, base).fingerprint


def test_the_fingerprint_tells_adapters_and_bases_apart(pair, editable):
    base, adapter = editable
    before = open_checkpoint(adapter, base).fingerprint
    assert before == open_checkpoint(pair[1], base).fingerprint
    edit_config(adapter, lora_alpha=7)
    assert open_checkpoint(adapter, base).fingerprint != before
    assert Checkpoint(base).fingerprint != before


def test_factors_in_a_torch_file_or_in_half_precision_are_read(pair, tmp_path):
    base, adapter = pair
    tensors = load_file(adapter / "adapter_model.safetensors")
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    folders = {}
    for name, content in (("bin", tensors), ("half", rounded), ("rounded", {k: v.float() for k, v in rounded.items()})):
        folders[name] = Path(shutil.copytree(adapter, tmp_path / name))
        if name == "bin":
            (folders[name] / "adapter_model.safetensors").unlink()
            torch.save(content, folders[name] / "adapter_model.bin")
        else:
            save_file(content, folders[name] / "adapter_model.safetensors")
    opened = {name: open_checkpoint(folder, base) for name, folder in folders.items()}
    expected = open_checkpoint(adapter, base)
    for name in expected.tensors:
        assert np.array_equal(values(opened["bin"], name), values(expected, name))
        assert np.array_equal(values(opened["half"], name), values(opened["rounded"], name))
