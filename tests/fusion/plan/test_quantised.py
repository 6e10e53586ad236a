"""Codes that can be decoded are fused as the weights that they stand for; others are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
from safetensors.torch import load_file, save_file
from sculpt.fusion.errors import CheckpointError
from sculpt.fusion.run.diff import diff

WRITTEN = Path(__file__).parents[1] / "checkpoint" / "quantised"
NAME = "model.layers.0.mlp.up_proj.weight"
LINEAR = "model.layers.0.mlp.up_proj"
BF16 = torch.bfloat16


def codes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8).to(dtype)


# As the libraries of each format name and store what they write, of formats that are not decoded.
FORMATS: dict[str, dict[str, torch.Tensor]] = {
    "aqlm": {
        f"{LINEAR}.codes": codes(torch.int16, 8, 1, 1),
        f"{LINEAR}.codebooks": torch.ones(1, 256, 1, 8, dtype=torch.float16),
        f"{LINEAR}.scales": torch.ones(8, 1, 1, 1, dtype=torch.float16),
    },
    "awq of another kernel": {
        f"{LINEAR}.qweight": codes(torch.int32, 8, 1),
        f"{LINEAR}.qzeros": codes(torch.int32, 8, 1),
        f"{LINEAR}.scales": torch.ones(1, 8, dtype=torch.float16),
    },
    "quanto": {
        f"{LINEAR}.weight._data": codes(torch.int8, 8, 8),
        f"{LINEAR}.weight._scale": torch.ones(8, 1, dtype=BF16),
    },
    "sparse": {
        f"{LINEAR}.weight_packed": codes(torch.int32, 8, 1),
        f"{LINEAR}.scale_packed": torch.ones(8, 1, dtype=BF16),
        f"{LINEAR}.meta": codes(torch.int16, 8, 1),
    },
    "mlx without its configuration": {
        f"{LINEAR}.weight": codes(torch.uint32, 8, 1),
        f"{LINEAR}.scales": torch.ones(8, 1, dtype=BF16),
        f"{LINEAR}.biases": torch.ones(8, 1, dtype=BF16),
    },
    "bytes without scales": {f"{LINEAR}.weight": codes(torch.uint8, 8, 8)},
}


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    save_file({"model.norm.weight": torch.ones(8, dtype=BF16), **tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("exclude", [(), ("*up_proj*",)], ids=["selected", "excluded"])
def test_codes_that_nothing_decodes_are_refused_by_name(kind: str, exclude: tuple[str, ...], tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "x", "version": "gemv"}} if "without its" not in kind else None
    base, tuned = (write(tmp_path / name, FORMATS[kind], config) for name in ("base", "sft"))
    settings = sculpt.Settings(selection=sculpt.Selection(exclude=exclude))
    with pytest.raises(CheckpointError, match=r"proj.* in `.*base` holds .* codes, (scaled )?by `(model|config)"):
        sculpt.fuse(base, tuned, output=tmp_path / "out", method=sculpt.Linear(), settings=settings)
    assert not (tmp_path / "out").exists()


def as_plain(kind: str, folder: Path) -> Path:
    """Write what a format's library decoded."""
    folder.mkdir()
    save_file(load_file(WRITTEN / kind / "expected.safetensors"), folder / "model.safetensors")
    dtype = json.loads((WRITTEN / kind / "config.json").read_text())["torch_dtype"]
    (folder / "config.json").write_text(json.dumps({"torch_dtype": dtype}))
    return folder


@pytest.mark.parametrize("kind", ["ct-int4", "mlx-int4"])
def test_models_of_several_formats_are_fused_as_what_they_stand_for(kind: str, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    quantised = shutil.copytree(WRITTEN / kind, tmp_path / "given" / "sft")
    (quantised / "expected.safetensors").unlink()
    (quantised / "quant_config.json").write_text("{}")
    tuned, base = as_plain(kind, tmp_path / "sft"), as_plain("ct-fp8", tmp_path / "base")
    pairs = {"decoded": (WRITTEN / "ct-fp8", quantised), "plain": (base, tuned)}
    for name, (first, second) in pairs.items():
        method = sculpt.TaskArithmetic(scale=0.5)
        sculpt.fuse(first, second, output=tmp_path / name, method=method)
    assert (tmp_path / "decoded" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "decoded" / "config.json").read_text()) == {"torch_dtype": "bfloat16"}
    assert not (tmp_path / "decoded" / "quant_config.json").exists()
    assert diff(quantised, tuned).tensors[0].changed == 0


def test_plain_weights_beside_a_stale_configuration_are_fused(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}}
    plain = {f"{LINEAR}.weight": torch.ones(8, 8, dtype=BF16), "model.position_ids": torch.arange(8)}
    base, tuned = (write(tmp_path / name, plain, config) for name in ("base", "sft"))
    sculpt.fuse(base, tuned, output=tmp_path / "out", method=sculpt.Linear())
    assert np.array_equal(sculpt.open_checkpoint(tmp_path / "out").read("model.position_ids"), np.arange(8))
