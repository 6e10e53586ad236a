"""The public functions, where calibration and fusion meet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sculpt
import torch
from sculpt.fusion.errors import CurvatureError, MethodError
from sculpt.fusion.record.files import file_digest
from transformers import LlamaConfig, LlamaForCausalLM

Read = Callable[[Path], dict[str, np.ndarray]]
Same = Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], bool]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, tuned and calibration data of a tiny Llama with a tied embedding."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=3, intermediate_size=64, num_attention_heads=4, vocab_size=90,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder / "base", max_shard_size="20KB")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder / "sft", max_shard_size="20KB")
    rng = np.random.default_rng(0)
    rows = [{"input_ids": rng.integers(90, size=rng.integers(3, 30)).tolist()} for _ in range(12)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_calibrating_within_the_fuse_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    hessian = sculpt.calibrate(models / "sft", data=models / "data.jsonl", output=tmp_path / "hessian.safetensors")
    pair = models / "base", models / "sft"
    within = sculpt.fuse(*pair, data=models / "data.jsonl", output=tmp_path / "within")
    before = sculpt.fuse(*pair, hessian=tmp_path / "hessian.safetensors", output=tmp_path / "before")
    memory = sculpt.fuse(*pair, hessian=hessian, output=tmp_path / "memory")
    for file in (tmp_path / "before").glob("*.safetensors"):
        assert (tmp_path / "within" / file.name).read_bytes() == file.read_bytes()
        assert (tmp_path / "memory" / file.name).read_bytes() == file.read_bytes()
    assert all(record.measured for record in within.tensors)
    digests = {"file": file_digest(tmp_path / "hessian.safetensors", "xxh3-128")}
    told = {**(within.curvature or {}), "asked": ""}
    assert {**(before.curvature or {}), "asked": ""} == {**told, **digests}
    assert {**(memory.curvature or {}), "content": "", "asked": ""} == {**told, "content": ""}
    assert [made.curvature and made.curvature["asked"] for made in (within, before, memory)] == [
        {"data": "data.jsonl"},
        {"hessian": "hessian.safetensors"},
        {},
    ]
    assert within.curvature is not None
    assert within.curvature["num_samples"] == 12


def test_a_fuse_uses_the_statistics_that_calibrate_left_beside_the_model(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hessian = sculpt.calibrate(models / "sft", data=models / "data.jsonl", output=models / "sft-hessian.safetensors")
    try:
        found = sculpt.fuse(models / "base", models / "sft", output=tmp_path / "found")
    finally:
        (models / "sft-hessian.safetensors").unlink()
    assert found.curvature is not None
    assert found.curvature["data_digest"] == hessian.provenance.data_digest
    assert "using the statistics in" in caplog.text


@pytest.mark.parametrize("scope", ["block", "model"])
def test_a_wider_scope_waits_for_all_statistics(scope: str, models: Path, tmp_path: Path) -> None:
    method = sculpt.AdaDare(scope=scope, allocation="exact")  # pyright: ignore[reportArgumentType]
    hessian = sculpt.calibrate(models / "sft", data=models / "data.jsonl")
    pair = models / "base", models / "sft"
    sculpt.fuse(*pair, method=method, data=models / "data.jsonl", output=tmp_path / "within")
    manifest = sculpt.fuse(*pair, method=method, hessian=hessian, output=tmp_path / "before")
    for file in (tmp_path / "before").glob("*.safetensors"):
        assert (tmp_path / "within" / file.name).read_bytes() == file.read_bytes()
    assert manifest.realised_sparsity() == pytest.approx(0.9, abs=0.01)
    assert len({round(record.realised_sparsity or 0, 2) for record in manifest.fused}) > 3


def test_curvature_changes_what_is_kept(models: Path, tensors_of: Read, tmp_path: Path) -> None:
    pair = models / "base", models / "sft"
    sculpt.fuse(*pair, data=models / "data.jsonl", output=tmp_path / "measured")
    sculpt.fuse(*pair, calibration=False, output=tmp_path / "plain")
    measured, plain = tensors_of(tmp_path / "measured"), tensors_of(tmp_path / "plain")
    assert all(measured[name].tobytes() != plain[name].tobytes() for name in measured if measured[name].size > 100)


def test_statistics_of_another_model_are_refused_unless_told(models: Path, tmp_path: Path) -> None:
    hessian = sculpt.calibrate(models / "base", data=models / "data.jsonl")
    pair = models / "base", models / "sft"
    with pytest.raises(CurvatureError, match="were measured on `base`, not on the tuned model"):
        sculpt.fuse(*pair, hessian=hessian, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    calibration = sculpt.Calibration(hessian=hessian, of_other_model=True)
    sculpt.fuse(*pair, calibration=calibration, output=tmp_path / "out")
    assert (tmp_path / "out/config.json").exists()


def test_statistics_of_another_shape_are_refused_by_name(models: Path, tmp_path: Path) -> None:
    wrong = {"model.norm.weight": sculpt.Curvature(terms=(np.ones(7),), num_tokens=3)}
    with pytest.raises(CurvatureError, match=r"`model\.norm\.weight` have shape \[7\], the tensor has \[32\]"):
        sculpt.fuse(models / "base", models / "sft", hessian=wrong, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_sources_of_curvature_exclude_each_other(models: Path) -> None:
    with pytest.raises(MethodError, match="`hessian` and `data` exclude each other"):
        sculpt.fuse(models / "base", models / "sft", hessian="h.safetensors", data="d.jsonl")


def test_a_failed_calibration_leaves_no_output(models: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(sculpt.SculptError):
        sculpt.fuse(models / "base", models / "sft", data=tmp_path / "empty.jsonl", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.jsonl"]


def test_a_fuse_draws_its_samples_by_the_seed_of_its_settings(models: Path, tmp_path: Path) -> None:
    rows = [{"input_ids": [k % 90, 1 + k % 7]} for k in range(200)]
    data = tmp_path / "many.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digests = set()
    for seed in (0, 7):
        options = sculpt.Settings(seed=seed)
        made = sculpt.fuse(models / "base", models / "sft", data=data, settings=options, output=tmp_path / f"{seed}")
        alone = sculpt.calibrate(models / "sft", data=data, output=tmp_path / f"{seed}.safetensors", seed=seed)
        assert made.curvature is not None
        assert made.curvature["data_digest"] == alone.provenance.data_digest
        digests.add(alone.provenance.data_digest)
    assert len(digests) == 2
