"""A fuse that takes an adapter where it takes a tuned checkpoint."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from sculpt import AdaDare, Calibration, Dare, Settings, TaskArithmetic, calibrate, diff, fuse, verify
from sculpt.fusion.checkpoint import Checkpoint, open_checkpoint
from sculpt.fusion.errors import CheckpointError, MismatchError
from sculpt.fusion.plan.plan import Policies

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def make_adapter(folder: Path, base: Path, *, seed: int = 0, **options: object) -> Path:
    """Write an adapter with random factors over a base on disk."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options})
        tuned = get_peft_model(model, config)
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.1
            elif parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.1
        tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=61,
    )
    folder = tmp_path_factory.mktemp("base") / "base"
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter") / "adapter", base)


def is_adapted(name: str) -> bool:
    return "q_proj" in name or "down_proj" in name


def test_whole_strength_gives_the_merge_rounded_once(base, adapter, tmp_path):
    tuned = open_checkpoint(adapter, base)
    manifest = fuse(base, adapter, output=tmp_path / "out", method=TaskArithmetic(scale=1.0))
    fused, before = Checkpoint(tmp_path / "out"), Checkpoint(base)
    assert [file.name for file in fused.files] == [file.name for file in before.files]
    for name, info in before.tensors.items():
        assert fused.tensors[name].dtype == info.dtype == "BF16"
        expected = tuned.read(name).astype(ml_dtypes.bfloat16) if is_adapted(name) else before.read(name)
        assert fused.read(name).tobytes() == expected.tobytes()
    assert {record.name for record in manifest.fused} == {name for name in before.tensors if is_adapted(name)}


@pytest.mark.parametrize("method", [Dare(sparsity=0.5), AdaDare(gamma=0.7, sparsity=0.9)])
def test_tiles_and_threads_change_no_bit(method, base, adapter, tmp_path):
    outputs = []
    for tile, threads in ((4096, 1), (None, 2)):
        out = tmp_path / f"out-{tile}"
        fuse(
            base,
            adapter,
            output=out,
            method=method,
            calibration=False,
            settings=Settings(tile_elements=tile, threads=threads),
        )
        outputs.append([file.read_bytes() for file in Checkpoint(out).files])
    assert outputs[0] == outputs[1]


def test_zero_strength_gives_the_base(base, adapter, tmp_path):
    fuse(base, adapter, output=tmp_path / "out", method=AdaDare(gamma=0.0), calibration=False)
    before, fused = Checkpoint(base), Checkpoint(tmp_path / "out")
    assert all(fused.read(name).tobytes() == before.read(name).tobytes() for name in before.tensors)


def test_adadare_keeps_the_delta_in_expectation(base, adapter, tmp_path):
    before, tuned = Checkpoint(base), open_checkpoint(adapter, base)
    name = "model.layers.0.mlp.down_proj.weight"
    delta = tuned.read(name) - before.read(name).astype(np.float32)
    runs = []
    for seed in range(40):
        fuse(
            base,
            adapter,
            output=tmp_path / f"{seed}",
            method=AdaDare(gamma=1.0, sparsity=0.5),
            calibration=False,
            settings=Settings(seed=seed, dtype="float32"),
        )
        runs.append(Checkpoint(tmp_path / f"{seed}").read(name) - before.read(name).astype(np.float32))
    error = np.mean(runs, axis=0) - delta
    assert abs(error.sum()) < 4 * np.std(runs, axis=0).sum() / np.sqrt(40 * delta.size)
    assert np.abs(error).mean() < np.abs(delta).mean()


def test_calibration_runs_on_base_and_adapter(base, adapter, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"input_ids": [i % 60 + 1 for i in range(k, k + 12)]}) + "\n" for k in range(6)))
    merged = tmp_path / "merged"
    fuse(base, adapter, output=merged, method=TaskArithmetic(), settings=Settings(dtype="float32"))
    found = calibrate(adapter, data=data, samples=6, only_changed=base)
    expected = calibrate(merged, data=data, samples=6)
    assert set(found) == {name for name in Checkpoint(base).tensors if is_adapted(name)}
    for name in found:
        for term, other in zip(found[name].terms, expected[name].terms, strict=True):
            np.testing.assert_allclose(term, other, rtol=1e-3)
    manifest = fuse(
        base,
        adapter,
        output=tmp_path / "out",
        method=AdaDare(gamma=0.7),
        calibration=Calibration(data=data, samples=6),
    )
    assert manifest.curvature is not None
    assert manifest.curvature["model_fingerprint"] == open_checkpoint(adapter, base).fingerprint


def test_manifest_digests_the_adapters_files_and_verify_knows_them(base, adapter, tmp_path):
    manifest = fuse(base, adapter, output=tmp_path / "out", method=TaskArithmetic(scale=0.5))
    names = [record.name for record in manifest.inputs[1].files]
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    verify(tmp_path / "out", [base, adapter])
    other = make_adapter(tmp_path / "other", base, seed=1)
    with pytest.raises(CheckpointError, match="not one of the checkpoints"):
        verify(tmp_path / "out", [other])


def test_companions_are_the_bases_but_for_the_adapters_tokenizer(base, adapter, tmp_path):
    (adapter / "tokenizer_config.json").write_text("{}")
    (adapter / "trainer_state.json").write_text("{}")
    fuse(base, adapter, output=tmp_path / "out", method=TaskArithmetic(scale=0.5))
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert not {"adapter_config.json", "trainer_state.json"} & names
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_module_that_the_base_lacks_is_extra(base, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", base, modules_to_save=["lm_head"])
    weights = adapter / "adapter_model.safetensors"
    from safetensors.numpy import load_file, save_file

    tensors = load_file(weights)
    save_file({**tensors, "base_model.model.score.weight": np.ones((3, 32), np.float32)}, weights)
    with pytest.raises(MismatchError, match=r"`score.weight` is in .* and missing in the base"):
        fuse(base, adapter, output=tmp_path / "out", method=TaskArithmetic())
    fuse(
        base,
        adapter,
        output=tmp_path / "out",
        method=TaskArithmetic(),
        settings=Settings(policies=Policies(on_extra="take-tuned"), load_check=False),
    )
    assert Checkpoint(tmp_path / "out").tensors["score.weight"].shape == (3, 32)
    head = Checkpoint(tmp_path / "out").read("lm_head.weight")
    assert (head == tensors["base_model.model.lm_head.weight"].reshape(-1).astype(ml_dtypes.bfloat16)).all()


def test_an_adapter_without_its_base_is_refused(adapter, tmp_path):
    with pytest.raises(CheckpointError, match="is an adapter"):
        Checkpoint(adapter)


def test_diff_shows_what_an_adapter_changes(base, adapter):
    found = diff(base, adapter)
    assert not found.only_first
    assert not found.other_form
    assert {t.name for t in found.tensors if t.changed} == {t.name for t in found.tensors if is_adapted(t.name)}
    assert all(t.changed == 1 and t.relative_norm > 0 for t in found.tensors if is_adapted(t.name))
