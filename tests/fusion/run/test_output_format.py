"""Outputs in FP8 and MXFP4 are what transformers writes and loads; what has not changed stays as it was stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
import transformers
from safetensors.torch import load_file, save_file
from sculpt.fusion.arithmetic.curvature import Curvature
from sculpt.fusion.arithmetic.inverse_factor import inverse_factor
from sculpt.fusion.checkpoint.coded.encode import fp4, fp8, fp8_rows, mxfp4_rows
from sculpt.fusion.errors import MethodError
from sculpt.fusion.run.fuse import execute
from sculpt.fusion.run.prepared import prepare
from transformers.integrations.finegrained_fp8 import Fp8Quantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
BLOCKS = transformers.FineGrainedFP8Config(weight_block_size=(32, 32))
QUANTISER: Any = type("Quantiser", (), {"quantization_config": BLOCKS})()


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    return transformers.LlamaForCausalLM(config).bfloat16()


def encoded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what transformers stores of a model in FP8."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        found |= Fp8Quantize(QUANTISER).convert({name: tensor}) if "_proj" in name else {name: tensor}
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a base in FP8, and a fine-tune in bfloat16 of what it decodes to, in which one layer has changed."""
    folder = tmp_path_factory.mktemp("models")
    whole = model(0)
    save_file(encoded(whole.state_dict()), folder / "model.safetensors", {"format": "pt"})
    whole.config.quantization_config = BLOCKS.to_dict()
    whole.config.save_pretrained(folder)
    base = sculpt.open_checkpoint(folder)
    (folder / "sft").mkdir()
    plain = {}
    for name, info in base.tensors.items():
        plain[name] = torch.from_numpy(base.read(name).view("u2").copy()).view(torch.bfloat16).reshape(info.shape)
        if "layers.1.mlp" in name:
            plain[name][:8] += 0.01
    save_file(plain, folder / "sft" / "model.safetensors", {"format": "pt"})
    model(0).config.save_pretrained(folder / "sft")
    return folder, folder / "sft"


def fused(base: Path, tuned: Path, output: Path, **settings: Any) -> dict[str, torch.Tensor]:
    method = sculpt.TaskArithmetic()
    sculpt.fuse(base, tuned, output=output, method=method, settings=sculpt.Settings(**settings))
    return load_file(output / "model.safetensors")


def test_fp8_is_what_transformers_writes_and_loads(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tuned = pair[1]
    found = fused(tuned, tuned, tmp_path / "out", output_format="fp8")
    expected = encoded(load_file(tuned / "model.safetensors"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again = sculpt.open_checkpoint(tmp_path / "out")
    for name, tensor in loaded.state_dict().items():
        assert tensor.contiguous().view(torch.uint8).numpy().tobytes() == again.read(name).tobytes()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_what_has_not_changed_stays_as_it_was_stored(rounding: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    found = fused(base, tuned, tmp_path / "out", output_format="same", rounding=rounding)
    before = load_file(base / "model.safetensors")
    assert found.keys() == before.keys()
    for name, tensor in before.items():
        changed = "layers.1.mlp" in name  # scales only where the largest element has grown
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)) or changed, name
        if name.endswith("up_proj.weight"):  # the block of rows below that was not touched
            assert torch.equal(found[name][32:].view(torch.uint8), tensor[32:].view(torch.uint8))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == json.loads((base / "config.json").read_text())["quantization_config"]
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "sculpt-manifest.json").read_text())
    assert "F8_E4M3" in json.dumps(manifest)


def test_codes_depend_on_no_tile_or_thread(pair: tuple[Path, Path], tmp_path: Path) -> None:
    runs = [
        fused(
            *pair,
            tmp_path / str(tile),
            output_format="same",
            rounding="stochastic",
            tile_elements=tile,
            threads=threads,
        )
        for tile, threads in ((4096, 1), (777, 3))
    ]
    assert all(torch.equal(runs[0][name].view(torch.uint8), runs[1][name].view(torch.uint8)) for name in runs[0])


def test_formats_that_are_not_written_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for wanted, message in (("mxfp4", "gpt-oss alone"), ("same", "the models have neither")):
        with pytest.raises(MethodError, match=message):
            fused(pair[1], pair[1], tmp_path / "out", output_format=wanted)
    with pytest.raises(MethodError, match="full curvature"):
        fused(*pair, tmp_path / "out", output_format="fp8", rounding="error-feedback")


def test_values_of_small_floats_are_the_nearest() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32) * 8
    for found, kind in ((fp8(values), "float8_e4m3fn"), (fp4(values), "float4_e2m1fn")):
        import ml_dtypes

        largest = 448 if kind == "float8_e4m3fn" else 6
        expected = np.clip(values, -largest, largest).astype(getattr(ml_dtypes, kind)).astype(np.float32)
        assert np.array_equal(found, expected)


def test_stochastic_rounding_is_right_on_average() -> None:
    rows = np.full((1, 1 << 16), 1.03, np.float32)
    uniform = np.random.default_rng(0).random(rows.shape, dtype=np.float32)
    assert set(np.unique(fp8(rows, uniform))) == {np.float32(1), np.float32(1.125)}
    assert abs(float(fp8(rows, uniform).mean()) - 1.03) < 0.001


def test_mxfp4_is_read_back_by_transformers() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    packed, exponents = mxfp4_rows(rows)
    blocks = torch.from_numpy(packed.reshape(1, 6, 3, 16)), torch.from_numpy(exponents.reshape(1, 6, 3))
    decoded = convert_moe_packed_tensors(*blocks, dtype=torch.float32)[0].numpy().T
    scale = np.repeat(2.0 ** (exponents.astype(int) - 127), 32, axis=1)
    assert np.array_equal(decoded, fp4((rows / scale).astype(np.float32)) * scale)
    assert (np.abs(rows).reshape(6, 3, 32).max(2) <= 6 * 2.0 ** (exponents.astype(int) - 127)).all()
    assert (np.abs(rows).reshape(6, 3, 32).max(2) > 3 * 2.0 ** (exponents.astype(int) - 127)).all()


def test_errors_that_are_fed_back_cost_the_outputs_less() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(400, 8)) @ generator.normal(size=(8, 32)) + generator.normal(size=(400, 32)) / 10
    rows = generator.normal(size=(16, 32)).astype(np.float32)
    factor = inverse_factor("w", 2 * inputs.T @ inputs).astype(np.float32)
    lost = []
    for given in (None, factor):
        codes, scales = fp8_rows(rows, 32, np.dtype(np.float32), factor=given)
        values = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy() * scales
        lost.append(float(np.square(inputs @ (values - rows).T).sum()))
    assert lost[1] < 0.5 * lost[0]


def test_errors_are_fed_back_by_what_was_measured(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, tuned = pair
    name = "model.layers.1.mlp.up_proj.weight"
    inputs = np.random.default_rng(0).normal(size=(300, 4)) @ np.random.default_rng(1).normal(size=(4, 32))
    terms = (np.square(inputs).sum(0)[None],)
    curvature = {name: (Curvature(terms=terms, num_tokens=300, gram=inputs.T @ inputs), None)}
    lost = {}
    for rounding in ("nearest", "auto", "error-feedback"):
        settings = sculpt.Settings(output_format="fp8", rounding=rounding)  # pyright: ignore[reportArgumentType]
        output = tmp_path / rounding
        prepared = prepare(tuned, [tuned], output=output, method=sculpt.TaskArithmetic(), settings=settings)
        execute(prepared, curvature=curvature)
        wanted, found = (sculpt.open_checkpoint(folder).read(name).astype(np.float32) for folder in (tuned, output))
        lost[rounding] = float(np.square(inputs @ (found - wanted).reshape(64, 32).T).sum())
    assert lost["auto"] == lost["error-feedback"] < 0.6 * lost["nearest"]
