"""Checkpoints of codes are refused by name, whatever the format; plain weights by a stale configuration are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
from safetensors.torch import save_file
from sculpt.fusion.errors import CheckpointError

LINEAR = "model.layers.0.mlp.up_proj"
BF16 = torch.bfloat16


def codes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8).to(dtype)


# As the libraries of each format name and store what they write.
FORMATS: dict[str, dict[str, torch.Tensor]] = {
    "gptq": {
        f"{LINEAR}.qweight": codes(torch.int32, 1, 8),
        f"{LINEAR}.qzeros": codes(torch.int32, 1, 1),
        f"{LINEAR}.scales": torch.ones(1, 8, dtype=torch.float16),
        f"{LINEAR}.g_idx": codes(torch.int32, 8),
    },
    "awq": {
        f"{LINEAR}.qweight": codes(torch.int32, 8, 1),
        f"{LINEAR}.qzeros": codes(torch.int32, 1, 1),
        f"{LINEAR}.scales": torch.ones(1, 8, dtype=torch.float16),
    },
    "bitsandbytes 4-bit": {
        f"{LINEAR}.weight": codes(torch.uint8, 32, 1),
        f"{LINEAR}.weight.absmax": torch.ones(1),
        f"{LINEAR}.weight.quant_map": torch.ones(16),
        f"{LINEAR}.weight.quant_state.bitsandbytes__nf4": codes(torch.uint8, 80),
    },
    "bitsandbytes 8-bit": {f"{LINEAR}.weight": codes(torch.int8, 8, 8), f"{LINEAR}.SCB": torch.ones(8)},
    "compressed-tensors": {
        f"{LINEAR}.weight_packed": codes(torch.int32, 8, 1),
        f"{LINEAR}.weight_scale": torch.ones(8, 1, dtype=BF16),
        f"{LINEAR}.weight_shape": torch.ones(2, dtype=torch.int64),
    },
    "int8": {f"{LINEAR}.weight": codes(torch.int8, 8, 8), f"{LINEAR}.weight_scale": torch.ones(8, 1, dtype=BF16)},
    "fp8 of blocks": {
        f"{LINEAR}.weight": codes(torch.float8_e4m3fn, 8, 8),
        f"{LINEAR}.weight_scale_inv": torch.ones(1, 1),
    },
    "mxfp4": {
        "model.layers.0.mlp.experts.down_proj_blocks": codes(torch.uint8, 2, 8, 1, 16),
        "model.layers.0.mlp.experts.down_proj_scales": codes(torch.uint8, 2, 8, 1),
    },
    "nvfp4": {
        f"{LINEAR}.weight": codes(torch.uint8, 8, 4),
        f"{LINEAR}.weight_scale": codes(torch.float8_e4m3fn, 8, 1),
        f"{LINEAR}.weight_scale_2": torch.ones(1),
    },
    "mlx": {
        f"{LINEAR}.weight": codes(torch.uint32, 8, 1),
        f"{LINEAR}.scales": torch.ones(8, 1, dtype=BF16),
        f"{LINEAR}.biases": torch.ones(8, 1, dtype=BF16),
    },
}


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    save_file({"model.norm.weight": torch.ones(8, dtype=BF16), **tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("exclude", [(), ("*up_proj*", "*down_proj*")], ids=["selected", "excluded"])
def test_codes_are_refused_by_name(kind: str, exclude: tuple[str, ...], tmp_path: Path) -> None:
    base, tuned = (write(tmp_path / name, FORMATS[kind]) for name in ("base", "sft"))
    settings = sculpt.Settings(selection=sculpt.Selection(exclude=exclude))
    with pytest.raises(CheckpointError, match=r"proj.* in `.*base` holds .* codes, scaled by `model"):
        sculpt.fuse(base, tuned, output=tmp_path / "out", method=sculpt.Linear(), settings=settings)
    assert not (tmp_path / "out").exists()


def test_a_quantised_fine_tune_of_a_plain_base_is_refused_as_such(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {f"{LINEAR}.weight": torch.ones(8, 8, dtype=BF16)})
    tuned = write(tmp_path / "sft", FORMATS["gptq"], {"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(CheckpointError, match=r"`sft`|sft` holds gptq codes"):
        sculpt.fuse(base, tuned, output=tmp_path / "out", method=sculpt.Linear())


def test_plain_weights_beside_a_stale_configuration_are_fused(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}}
    plain = {f"{LINEAR}.weight": torch.ones(8, 8, dtype=BF16), "model.position_ids": torch.arange(8)}
    base, tuned = (write(tmp_path / name, plain, config) for name in ("base", "sft"))
    sculpt.fuse(base, tuned, output=tmp_path / "out", method=sculpt.Linear())
    assert np.array_equal(sculpt.open_checkpoint(tmp_path / "out").read("model.position_ids"), np.arange(8))
