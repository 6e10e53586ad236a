"""Adapters made from adapters and from fine-tunes: exact where they say so, loadable by PEFT 0.21."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sculpt.fusion.checkpoint import Checkpoint, open_checkpoint
from sculpt.fusion.checkpoint.open import open_adapter
from sculpt.fusion.errors import CheckpointError, MethodError, OutputError
from sculpt.fusion.lora import truncated_svd
from sculpt.fusion.lora.combine import combine_adapters
from sculpt.fusion.lora.extract import extract_adapter
from sculpt.fusion.lora.truncated_svd import of_matrix, of_product
from sculpt.fusion.plan.options import Selection

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=61,
        attention_bias=True,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=41, n_positions=16, bos_token_id=0)
    return transformers.GPT2LMHeadModel(config)


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    return transformers.ViTForImageClassification(config)


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        num_local_experts=3,
    )
    return transformers.MixtralForCausalLM(config)


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
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=39)
    return transformers.LlavaForConditionalGeneration(config)


MODELS = {"llama": llama, "gpt2": gpt2, "vit": vit, "mixtral": mixtral, "llava": llava}


def save_base(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(folder / "base")
    return folder / "base"


def load(kind: str, folder: Path) -> Any:
    return type(MODELS[kind]()).from_pretrained(folder)


def make_adapter(kind: str, base: Path, folder: Path, *, seed: int, **options: Any) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    tuned = get_peft_model(load(kind, base), LoraConfig(**{"lora_alpha": 6, **options}))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
        elif parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.1
    tuned.save_pretrained(folder)
    return folder


def peft_merge(kind: str, base: Path, adapter: Path, out: Path) -> Checkpoint:
    from peft import PeftModel

    PeftModel.from_pretrained(load(kind, base), adapter).merge_and_unload().save_pretrained(out)
    return Checkpoint(out)


def deltas(base: Path, tuned: Checkpoint | Path) -> dict[str, np.ndarray]:
    before = Checkpoint(base)
    tuned = open_checkpoint(tuned, before) if isinstance(tuned, Path) else tuned
    return {name: tuned.read(name).astype(np.float64) - before.read(name) for name in before.tensors}


TWO_ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "llama",
        {"r": 3, "target_modules": ["q_proj", "embed_tokens", "up_proj"], "use_rslora": True},
        {"r": 5, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.1.*q_proj": 2}},
    ),
    "biases and saved modules": (
        "llama",
        {"r": 2, "target_modules": ["q_proj"], "bias": "all", "modules_to_save": ["norm"], "lora_bias": True},
        {"r": 3, "target_modules": ["q_proj"], "bias": "lora_only", "lora_bias": True},
    ),
    "gpt2": (
        "gpt2",
        {"r": 3, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        {"r": 2, "target_modules": ["c_fc", "mlp.c_proj"], "fan_in_fan_out": True},
    ),
    "vit": (
        "vit",
        {"r": 2, "target_modules": ["projection", "q_proj"]},
        {"r": 3, "target_modules": ["projection"]},
    ),
    "mixtral": (
        "mixtral",
        {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]},
        {"r": 3, "target_modules": ["v_proj"], "target_parameters": ["gate_up_proj", "down_proj"]},
    ),
    "llava": ("llava", {"r": 2, "target_modules": ["q_proj", "linear_1"]}, {"r": 3, "target_modules": ["q_proj"]}),
}


@pytest.fixture
def two(request, tmp_path):
    kind, first, second = TWO_ADAPTERS[request.param]
    base = save_base(kind, tmp_path)
    return (
        kind,
        base,
        [
            make_adapter(kind, base, tmp_path / "one", seed=1, **first),
            make_adapter(kind, base, tmp_path / "two", seed=2, **second),
        ],
    )


@pytest.mark.parametrize("two", TWO_ADAPTERS, indirect=True)
def test_concatenation_is_the_weighted_sum_of_the_deltas(two, tmp_path):
    kind, base, adapters = two
    report = combine_adapters(base, adapters, output=tmp_path / "cat", weights=[0.7, -0.4])
    assert report.error == 0
    one, other = (deltas(base, adapter) for adapter in adapters)
    ours = deltas(base, tmp_path / "cat")
    pefts = deltas(base, peft_merge(kind, base, tmp_path / "cat", tmp_path / "merged"))
    for name in one:
        expected = 0.7 * one[name] - 0.4 * other[name]
        np.testing.assert_allclose(ours[name], expected, atol=2e-6)
        np.testing.assert_allclose(pefts[name], expected, atol=2e-6)


@pytest.mark.parametrize("two", TWO_ADAPTERS, indirect=True)
def test_svd_is_the_best_of_its_rank_and_reports_its_error(two, tmp_path):
    _, base, adapters = two
    report = combine_adapters(base, adapters, output=tmp_path / "svd", weights=[1.0, 1.0], rank=2)
    exact = open_adapter(_cat(base, adapters, tmp_path), base)
    short = open_adapter(tmp_path / "svd", base)
    errors = []
    for name, patch in short.patches.items():
        if patch.product is None or patch.product.a is None:
            continue
        wanted, found = exact.factors(name), short.factors(name)
        for e in range(found.shape[0]):
            matrix = wanted.scale * wanted.left[e].astype(np.float64) @ wanted.right[e]
            values = np.linalg.svd(matrix, compute_uv=False)
            missed = np.linalg.norm(matrix - found.scale * found.left[e].astype(np.float64) @ found.right[e])
            if patch.product.rows is None:  # fused experts are cut apart by the base; together they are the best
                assert missed == pytest.approx(np.sqrt(np.sum(values[2:] ** 2)), abs=1e-5)
            errors.append(missed)
    assert report.error > 0
    total = np.sqrt(sum((layer.error * layer.norm) ** 2 for layer in report.layers))
    assert np.linalg.norm(errors) == pytest.approx(total, rel=1e-4)
    record = json.loads((tmp_path / "svd" / "sculpt-adapter.json").read_text())
    assert record["error"] == report.error


def _cat(base: Path, adapters: list[Path], folder: Path) -> Path:
    combine_adapters(base, adapters, output=folder / "exact", weights=[1.0, 1.0])
    return folder / "exact"


@pytest.mark.parametrize("two", ["llama"], indirect=True)
def test_energy_picks_the_least_rank_that_holds_it(two, tmp_path):
    _, base, adapters = two
    report = combine_adapters(base, adapters, output=tmp_path / "out", weights=[1.0, 1.0], energy=0.9)
    assert all(layer.error**2 <= 0.1 + 1e-6 for layer in report.layers)
    fewer = [layer for layer in report.layers if layer.rank < layer.rank_before]
    assert fewer
    whole = combine_adapters(base, adapters, output=tmp_path / "all", weights=[1.0, 1.0], energy=1.0)
    assert whole.error < 1e-6


@pytest.mark.parametrize("two", ["llama"], indirect=True)
def test_adapters_that_do_not_add_up_are_refused(two, tmp_path):
    kind, base, adapters = two
    dora = make_adapter(kind, base, tmp_path / "dora", seed=3, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(CheckpointError, match="DoRA"):
        combine_adapters(base, [dora, adapters[0]], output=tmp_path / "out", weights=[1, 1])
    with pytest.raises(CheckpointError, match="whole checkpoint"):
        combine_adapters(base, [base], output=tmp_path / "out", weights=[1])
    with pytest.raises(MethodError, match="2 values for 1 adapters"):
        combine_adapters(base, adapters[:1], output=tmp_path / "out", weights=[1, 1])
    with pytest.raises(MethodError, match="rank"):
        combine_adapters(base, adapters, output=tmp_path / "out", weights=[1, 1], rank=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    for overwrite, words in ((False, "exists"), (True, "an adapter that sculpt wrote")):
        with pytest.raises(OutputError, match=words):
            combine_adapters(base, adapters, output=tmp_path / "mine", weights=[1, 1], overwrite=overwrite)
    with pytest.raises(OutputError, match="is the input"):
        combine_adapters(base, adapters, output=adapters[1], weights=[1, 1])
    combine_adapters(base, adapters, output=tmp_path / "out", weights=[1, 1])
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    combine_adapters(base, adapters, output=tmp_path / "out", weights=[1, 1], overwrite=True)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


def fine_tune(kind: str, base: Path, folder: Path, *, rank: int | None = None, skip: tuple[str, ...] = ()) -> Path:
    """Move every tensor by noise, matrices by noise of a rank."""
    torch.manual_seed(5)
    model = load(kind, base)
    for name, parameter in model.named_parameters():
        if any(part in name for part in skip):
            continue
        noise = torch.randn_like(parameter) * 0.05
        if rank is not None and parameter.ndim >= 2:
            flat = noise.reshape(len(noise), -1)
            noise = (flat[:, :rank] @ torch.randn(rank, flat.shape[1]) * 0.5).reshape(noise.shape)
        parameter.data += noise
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "skip"),
    [("llama", ()), ("gpt2", ("wte",)), ("vit", ("cls_token", "position_embeddings")), ("llava", ("class_embedding",))],
)
def test_a_fine_tune_of_low_rank_is_extracted_whole(kind, skip, tmp_path):
    base = save_base(kind, tmp_path)
    tuned = fine_tune(kind, base, tmp_path / "tuned", rank=2, skip=skip)
    report = extract_adapter(base, tuned, output=tmp_path / "adapter", rank=2)
    assert report.error < 1e-5
    expected = deltas(base, Checkpoint(tuned))
    ours = deltas(base, tmp_path / "adapter")
    pefts = deltas(base, peft_merge(kind, base, tmp_path / "adapter", tmp_path / "merged"))
    for name, delta in expected.items():
        np.testing.assert_allclose(ours[name], delta, atol=1e-6)
        np.testing.assert_allclose(pefts[name], delta, atol=1e-6)


def test_energy_bounds_the_error_of_each_layer(tmp_path):
    base = save_base("llama", tmp_path)
    tuned = fine_tune("llama", base, tmp_path / "tuned")
    report = extract_adapter(base, tuned, output=tmp_path / "adapter", energy=0.95, rest="drop")
    assert all(layer.error**2 <= 0.05 + 1e-9 for layer in report.layers)
    delta, kept = deltas(base, Checkpoint(tuned)), deltas(base, tmp_path / "adapter")
    for layer in report.layers:
        name = f"{layer.name}.weight"
        missed = np.linalg.norm(delta[name] - kept[name]) / np.linalg.norm(delta[name])
        assert missed == pytest.approx(layer.error, abs=1e-5)
    assert not kept["model.norm.weight"].any()
    record = json.loads((tmp_path / "adapter" / "sculpt-adapter.json").read_text())
    assert "model.norm.weight" in record["left out"]


def test_what_an_adapter_cannot_hold_is_refused(tmp_path):
    base = save_base("gpt2", tmp_path)
    tuned = fine_tune("gpt2", base, tmp_path / "tuned")
    with pytest.raises(CheckpointError, match="ties to its output"):
        extract_adapter(base, tuned, output=tmp_path / "adapter", rank=2)
    extract_adapter(base, tuned, output=tmp_path / "adapter", rank=2, selection=Selection(exclude=("*wte*",)))
    base = save_base("mixtral", tmp_path / "moe")
    tuned = fine_tune("mixtral", base, tmp_path / "moe" / "tuned")
    with pytest.raises(CheckpointError, match="an adapter cannot store"):
        extract_adapter(base, tuned, output=tmp_path / "moe" / "adapter", rank=2)
    with pytest.raises(CheckpointError, match="differs from"):
        extract_adapter(base, base, output=tmp_path / "moe" / "adapter", rank=2)


def test_projection_is_close_to_the_best(monkeypatch):
    monkeypatch.setattr(truncated_svd, "DENSE_BELOW", 0)
    rng = np.random.default_rng(0)
    decay = rng.standard_normal((400, 40)) * 1.3 ** -np.arange(40) @ rng.standard_normal((40, 300))
    matrix = (decay + 0.01 * rng.standard_normal((400, 300))).astype(np.float32)

    def blocks():
        for start in range(0, 400, 64):
            yield slice(start, min(start + 64, 400)), matrix[start : start + 64]

    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in (4, 32):
        found = of_matrix(matrix.shape, blocks, rank=rank)
        best = np.sqrt(np.sum(values[rank:] ** 2) / np.sum(values**2))
        assert found.error == pytest.approx(best, rel=5e-3)
        assert found.error == pytest.approx(
            np.linalg.norm(matrix - found.left @ found.right) / np.linalg.norm(matrix), rel=1e-3
        )
    assert of_matrix(matrix.shape, blocks, energy=0.95).rank == 1 + np.searchsorted(
        np.cumsum(values**2), 0.95 * np.sum(values**2)
    )


def test_a_product_is_decomposed_without_being_formed():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((30, 6)), rng.standard_normal((6, 50))
    found = of_product(left, right, rank=6)
    np.testing.assert_allclose(found.left @ found.right, left @ right, atol=1e-5)
    huge = of_product(rng.standard_normal((300_000, 3)), rng.standard_normal((3, 200_000)), rank=1)
    assert huge.left.shape == (300_000, 1)
