"""Quantised checkpoints are read as what each format's own library decodes them to, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sculpt.fusion.checkpoint import Source, open_checkpoint
from sculpt.fusion.checkpoint.coded import codes
from sculpt.fusion.checkpoint.coded.coded import Scaled
from sculpt.fusion.checkpoint.quantised import refuse_codes
from sculpt.fusion.checkpoint.torch_file import as_array
from sculpt.fusion.errors import CheckpointError
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

FORMATS = Path(__file__).parent / "quantised"  # `make.py` there wrote them with the libraries
KINDS = sorted(folder.name for folder in FORMATS.iterdir() if folder.is_dir())
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_elements_are_those_of_the_formats_library(kind: str) -> None:
    source = open_checkpoint(FORMATS / kind)
    expected = load_file(FORMATS / kind / "expected.safetensors")[NAME]
    info = source.tensors[NAME]
    assert list(source.tensors) == [NAME]
    assert (info.shape, info.kind.torch) == (tuple(expected.shape), str(expected.dtype).removeprefix("torch."))
    assert info.kind.numpy is not None
    whole = as_array(expected.reshape(-1), info.kind.numpy)
    assert source.read(NAME).tobytes() == whole.tobytes()
    for start, stop in ((0, 1), (63, 66), (1001, 2047), (len(whole) - 1, len(whole))):
        assert np.array_equal(source.read(NAME, start, stop).view("u1"), whole[start:stop].view("u1"))
    assert "quantization_config" not in (source.config or {})


def stored(tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, object]) -> Source:
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return open_checkpoint(tmp_path)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def random_bytes(*shape: int, below: int = 256) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


FINE_GRAINED = {
    "blocks": (random_bytes(256, 384).view(torch.float8_e4m3fn), torch.rand(2, 3)),
    "exponents": (random_bytes(256, 384).view(torch.float8_e4m3fn), (random_bytes(2, 3)).view(torch.float8_e8m0fnu)),
    "bytes of exponents": (random_bytes(2, 8, 64).view(torch.float8_e4m3fn), random_bytes(2, 8, 2)),
    "whole": (random_bytes(3, 5).view(torch.float8_e5m2), torch.tensor(0.3)),
    "experts": (random_bytes(3, 128, 256).view(torch.float8_e4m3fn), torch.rand(3, 1, 2)),
    "FP4": (random_bytes(8, 32).view(torch.int8), random_bytes(8, 2).view(torch.float8_e8m0fnu)),
}


@pytest.mark.parametrize("kind", FINE_GRAINED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_fine_grained_fp8_is_what_transformers_makes_of_it(kind: str, dtype: str, tmp_path: Path) -> None:
    weight, scale = FINE_GRAINED[kind]
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, getattr(torch, dtype))
    names = ("w.weight", "w.weight_scale_inv") if kind != "FP4" else ("w.weight", "w.scale")
    source = stored(
        tmp_path, {**dict(zip(names, (weight, scale), strict=True)), "w.input_scale": torch.ones(1)}, {"dtype": dtype}
    )
    assert {name: info.shape for name, info in source.tensors.items()} == {"w.weight": tuple(expected.shape)}
    found = torch.from_numpy(source.read("w.weight").view("u1").copy()).view(expected.dtype).reshape(expected.shape)
    assert torch.equal(found.isnan(), expected.isnan())
    assert bits(found.nan_to_num(0)) == bits(expected.nan_to_num(0))


def test_the_last_blocks_of_fp8_may_be_in_part(tmp_path: Path) -> None:
    weight, scale = random_bytes(200, 130, below=120).view(torch.float8_e4m3fn), torch.rand(2, 2)
    rows, columns = torch.arange(200) // 128, torch.arange(130) // 128
    expected = (weight.float() * scale[rows][:, columns]).bfloat16()
    source = stored(tmp_path, {"w.weight": weight, "w.weight_scale_inv": scale}, {})
    assert source.read("w.weight").tobytes() == bits(expected)


def test_experts_of_gpt_oss_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    blocks, scales = random_bytes(2, 6, 3, 16), random_bytes(2, 6, 3)
    expected = convert_moe_packed_tensors(blocks, scales)
    source = stored(tmp_path, {"experts.down_proj_blocks": blocks, "experts.down_proj_scales": scales}, {})
    assert source.tensors["experts.down_proj"].shape == tuple(expected.shape) == (2, 96, 6)
    found = torch.from_numpy(source.read("experts.down_proj").view("u1").copy()).view(torch.bfloat16)
    assert torch.equal(found.isnan(), expected.reshape(-1).isnan())
    assert bits(found.nan_to_num(0)) == bits(expected.reshape(-1).nan_to_num(0))
    assert source.read("experts.down_proj", 101, 700).tobytes() == source.read("experts.down_proj")[101:700].tobytes()


def test_scales_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    tensors = {"w.weight": random_bytes(8, 8).view(torch.float8_e4m3fn), "w.weight_scale_inv": torch.rand(3, 1)}
    with pytest.raises(CheckpointError, match=r"`w.weight_scale_inv` \[3, 1\] .* does not fit `w.weight` \[8, 8\]"):
        stored(tmp_path, tensors, {})


WIDTHS = {"even": 6, "odd": 5, "the last in part": 8, "listed": np.random.default_rng(0).permutation(30) // 6}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["bytes", "low half first", "high half first"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_any_rows_are_codes_less_zeros_times_scales(kind: str, width: str, dtype: str) -> None:
    random, (rows, columns, row_block), across = np.random.default_rng(1), (11, 30, 3), WIDTHS[width]
    group = np.arange(columns) // across if isinstance(across, int) else across
    code = random.integers(0, 256 if kind == "bytes" else 16, (rows, columns)).astype(np.uint8)
    scales, zeros = random.random((2, 4, group.max() + 1)).astype("f4")
    table = random.random(256 if kind == "bytes" else 16).astype("f4")
    packed = code if kind == "bytes" else code[:, ::2] << 4 | code[:, 1::2]
    if kind == "low half first":
        packed = code[:, ::2] | code[:, 1::2] << 4
    decoder = Scaled(
        columns=columns,
        dtype=np.dtype(dtype),
        codes=lambda first, last: packed[first:last],
        table=table,
        high_first=kind == "high half first",
        scales=lambda first, last: scales[first:last],
        zeros=lambda first, last: zeros[first:last],
        row_block=row_block,
        width=across,
    )
    block = np.arange(rows) // row_block
    expected = ((table[code] - zeros[block][:, group]) * scales[block][:, group]).astype(dtype)
    for first, last in ((0, rows), (4, 5), (5, 11), (3, 3)):
        assert np.array_equal(decoder.rows(first, last), expected[first:last])


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_that_are_packed_densely_are_the_bits_of_a_long_number(bits: int) -> None:
    words = np.random.default_rng(bits).integers(0, 2**32, (2, bits), dtype=np.uint32)
    numbers = [int.from_bytes(row.astype("<u4").tobytes(), "little") for row in words]
    expected = [[number >> bits * place & (1 << bits) - 1 for place in range(31)] for number in numbers]
    assert codes.unpacked(words, bits, 31).tolist() == expected


def test_zeros_and_groups_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    packed = {"w.weight_packed": torch.zeros(4, 2, dtype=torch.int32), "w.weight_shape": torch.tensor([4, 16])}
    config = {"quantization_config": {"num_bits": 4}}
    scaled = {"w.weight_scale": torch.rand(4, 2), "w.weight_zero_point": torch.zeros(3, 2, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=r"`w.weight_zero_point` \[3, 2\] .* does not fit `w.weight_packed`"):
        stored(tmp_path, packed | scaled, config)
    gptq = {"w.qweight": torch.zeros(3, 8, dtype=torch.int32), "w.scales": torch.rand(5, 8).half()}
    with pytest.raises(CheckpointError, match=r"`w.qzeros` \[5, 1\] .* does not fit `w.qweight`"):
        stored(tmp_path, gptq | {"w.qzeros": torch.zeros(5, 1, dtype=torch.int32)}, {})
    eight = {"w.weight": torch.zeros(4, 2, dtype=torch.int8), "w.weight_scale": torch.rand(4, 1)}
    with pytest.raises(CheckpointError, match=r"`w.weight_zero_point` \[2, 1\] .* does not fit `w.weight`"):
        stored(tmp_path, eight | {"w.weight_zero_point": torch.zeros(2, 1, dtype=torch.int8)}, {})


LACKING = [
    ("bnb-nf4-double", "weight.nested_absmax"),
    ("bnb-nf4-double", "weight.nested_quant_map"),
    ("bnb-nf4", "weight.absmax"),
    ("ct-int4-asymmetric", "weight_zero_point"),
    ("ct-nvfp4", "weight_global_scale"),
    ("ct-nvfp4", "weight_scale"),
    ("gptq-act-order", "g_idx"),
    ("gptq", "scales"),
    ("mlx-int4", "scales"),
    ("modelopt-nvfp4", "weight_scale_2"),
]


@pytest.mark.parametrize(("kind", "part"), LACKING)
def test_codes_that_lack_a_part_are_refused_by_name(kind: str, part: str, tmp_path: Path) -> None:
    tensors = load_file(FORMATS / kind / "model.safetensors")
    del tensors[f"{NAME.removesuffix('.weight')}.{part}"]
    with pytest.raises(CheckpointError, match=NAME.removesuffix(".weight")):
        refuse_codes(stored(tmp_path, tensors, json.loads((FORMATS / kind / "config.json").read_text())))


CUT = [
    ("bnb-nf4-double", "weight.nested_quant_map"),
    ("ct-int4", "weight_shape"),
    ("ct-fp8-block", "weight_scale"),
    ("awq", "qzeros"),
]


@pytest.mark.parametrize(("kind", "part"), CUT)
def test_parts_of_another_size_are_refused_by_name(kind: str, part: str, tmp_path: Path) -> None:
    tensors = load_file(FORMATS / kind / "model.safetensors")
    name = f"{NAME.removesuffix('.weight')}.{part}"
    tensors[name] = tensors[name][:-1].clone()
    with pytest.raises(CheckpointError, match=NAME.removesuffix(".weight")):
        stored(tmp_path, tensors, json.loads((FORMATS / kind / "config.json").read_text()))
