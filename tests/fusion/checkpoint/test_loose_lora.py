"""LoRAs in one file: every way to name a module gives W + (α/r)·B·A.

`diffusers` 0.42's `load_lora_weights` and `fuse_lora` give the same weights, and its converter of single files the
same names of blocks (166 modules of Stable Diffusion 1.5).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sculpt
from safetensors.numpy import load_file, save_file
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.errors import CheckpointError

Tensors = dict[str, np.ndarray]
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
# Modules of a U-Net in diffusers' words, their shapes, and what a single file of Stable Diffusion 1 calls them.
UNET = {
    f"{ATTENTION}.to_q": ((6, 4), "input_blocks.4.1.transformer_blocks.0.attn1.to_q"),
    f"{ATTENTION}.to_out.0": ((6, 6), "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0"),
    "mid_block.resnets.1.conv1": ((6, 4, 3, 3), "middle_block.2.in_layers.2"),
    "up_blocks.2.resnets.1.conv_shortcut": ((6, 4, 1, 1), "output_blocks.7.0.skip_connection"),
}
TEXTS = {"text_model.encoder.layers.0.mlp.fc1": (8, 4)}


def random(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pipeline(folder: Path) -> Path:
    weights: dict[str, Tensors] = {
        "unet/diffusion_pytorch_model": {f"{name}.weight": random(shape, 1) for name, (shape, _) in UNET.items()},
        "text_encoder/model": {f"{name}.weight": random(shape, 2) for name, shape in TEXTS.items()},
    }
    for name, tensors in weights.items():
        (folder / name).parent.mkdir(parents=True)
        save_file(tensors, folder / f"{name}.safetensors")
    listed = {"unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(listed))
    return folder


def single_file(file: Path) -> Path:
    tensors = {f"model.diffusion_model.{own}.weight": random(shape, 1) for shape, own in UNET.values()}
    tensors |= {f"cond_stage_model.transformer.{name}.weight": random(shape, 2) for name, shape in TEXTS.items()}
    save_file(tensors, file)
    return file


def factors(shape: tuple[int, ...], rank: int = 2) -> tuple[np.ndarray, np.ndarray]:
    return random((rank, *shape[1:]), 3), random((shape[0], rank, *(1,) * (len(shape) - 2)), 4)


def added(shape: tuple[int, ...], rank: int = 2) -> np.ndarray:
    a, b = factors(shape, rank)
    return (b.reshape(shape[0], rank) @ a.reshape(rank, -1)).reshape(shape)


def kohya(component: str, module: str) -> tuple[str, str, str]:
    key = ("lora_unet_" if component == "unet" else "lora_te_") + module.replace(".", "_")
    return f"{key}.lora_down.weight", f"{key}.lora_up.weight", f"{key}.alpha"


def diffusers(component: str, module: str) -> tuple[str, str, str]:
    return f"{component}.{module}.lora_A.weight", f"{component}.{module}.lora_B.weight", ""


def linear_layers(component: str, module: str) -> tuple[str, str, str]:
    key = f"{component}.{module}.lora_linear_layer" if component != "unet" else f"{component}.{module}.lora"
    return f"{key}.down.weight", f"{key}.up.weight", ""


def processors(component: str, module: str) -> tuple[str, str, str]:
    if ".attn1." not in module:
        return diffusers(component, module)
    key = module.replace(".attn1.", ".attn1.processor.").replace("to_out.0", "to_out")
    return f"{component}.{key}_lora.down.weight", f"{component}.{key}_lora.up.weight", ""


Way = Callable[[str, str], tuple[str, str, str]]


def write(file: Path, way: Way, *, alpha: float | None = None, metadata: dict[str, str] | None = None) -> Path:
    tensors: Tensors = {}
    every = [("unet", name, shape) for name, (shape, _) in UNET.items()]
    for component, module, shape in [*every, *(("text_encoder", name, shape) for name, shape in TEXTS.items())]:
        a, b, scale = way(component, module)
        tensors[a], tensors[b] = factors(shape)
        if alpha is not None:
            tensors[scale] = np.array(alpha, np.float32)
    file.parent.mkdir(exist_ok=True)
    save_file(tensors, file, metadata)
    return file


@pytest.mark.parametrize(
    ("way", "alpha"),
    [(kohya, None), (kohya, 1.0), (kohya, 3.0), (diffusers, None), (linear_layers, None), (processors, None)],
)
def test_every_way_to_name_a_module_adds_the_same(way: Way, alpha: float | None, tmp_path: Path) -> None:
    base = open_checkpoint(pipeline(tmp_path / "base"))
    found = open_checkpoint(write(tmp_path / "lora.safetensors", way, alpha=alpha), base)
    scale = 1.0 if alpha is None else alpha / 2
    shapes = {f"unet/{name}.weight": shape for name, (shape, _) in UNET.items()}
    shapes |= {f"text_encoder/{name}.weight": shape for name, shape in TEXTS.items()}
    assert found.changed == shapes.keys()
    for name, shape in shapes.items():
        expected = base.read(name).reshape(shape) + scale * added(shape)
        np.testing.assert_allclose(found.read(name).reshape(shape), expected, rtol=1e-5, atol=1e-6)


def test_a_single_file_has_other_names_for_the_same_blocks(tmp_path: Path) -> None:
    base = open_checkpoint(single_file(tmp_path / "base.safetensors"))
    found = open_checkpoint(write(tmp_path / "lora.safetensors", kohya, alpha=2.0), base)
    assert found.changed == base.tensors.keys()
    for shape, own in UNET.values():
        name = f"model.diffusion_model.{own}.weight"
        expected = base.read(name).reshape(shape) + added(shape)
        np.testing.assert_allclose(found.read(name).reshape(shape), expected, rtol=1e-5, atol=1e-6)


def test_a_lora_is_fused_into_its_base_as_a_fine_tune_is(tmp_path: Path) -> None:
    base, lora = pipeline(tmp_path / "base"), write(tmp_path / "lora.safetensors", kohya, alpha=2.0)
    output = tmp_path / "out"
    sculpt.fuse(base, lora, output=output, method=sculpt.TaskArithmetic(scale=0.5))
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(base / name), load_file(output / name)
    for key, (shape, _) in UNET.items():
        expected = before[f"{key}.weight"] + 0.5 * added(shape)
        np.testing.assert_allclose(after[f"{key}.weight"], expected, rtol=1e-5, atol=1e-6)
    assert (output / "model_index.json").exists()
    sculpt.verify(output, [base, lora])
    files = single_file(tmp_path / "base.safetensors"), lora
    assert sculpt.fuse(*files, method=sculpt.TaskArithmetic()).folder.suffix == ".safetensors"


def test_what_diffusers_says_of_peft_is_heeded(tmp_path: Path) -> None:
    base = open_checkpoint(pipeline(tmp_path / "base"))
    said = {"unet.r": 2, "unet.lora_alpha": 8, "text_encoder.lora_alpha": 2, "unet.use_dora": False}
    folder = tmp_path / "lora"
    write(folder / "pytorch_lora_weights.safetensors", diffusers, metadata={"lora_adapter_metadata": json.dumps(said)})
    found = open_checkpoint(folder, base)
    name, shape = f"unet/{ATTENTION}.to_q.weight", (6, 4)
    np.testing.assert_allclose(
        found.read(name).reshape(shape), base.read(name).reshape(shape) + 4 * added(shape), rtol=1e-5, atol=1e-5
    )


KEY = f"lora_unet_{ATTENTION.replace('.', '_')}_to_q"
A, B = factors((6, 4))
BAD: dict[str, tuple[Tensors, dict[str, str], str]] = {
    "half": ({f"{KEY}.lora_down.weight": A}, {}, "lacks one of the two"),
    "LoHa": ({f"{KEY}.lora_down.weight": A, f"{KEY}.hada_w1_a": A}, {}, "is none of what a LoRA adds"),
    "DoRA": (
        *({f"{KEY}.lora_down.weight": A, f"{KEY}.lora_up.weight": B, f"{KEY}.dora_scale": A}, {}),
        "is none of what a LoRA adds",
    ),
    "elsewhere": ({"lora_unet_x.lora_down.weight": A, "lora_unet_x.lora_up.weight": B}, {}, "adapts `lora_unet_x`"),
    "other shape": ({f"{KEY}.lora_down.weight": A[:, :3], f"{KEY}.lora_up.weight": B}, {}, "fit none of"),
    "twice": (
        {
            **{f"{KEY}.lora_down.weight": A, f"{KEY}.lora_up.weight": B},
            **{f"unet.{ATTENTION}.to_q.lora_A.weight": A, f"unet.{ATTENTION}.to_q.lora_B.weight": B},
        },
        {},
        "twice, the second time as",
    ),
    "rsLoRA": (
        {f"{KEY}.lora_down.weight": A, f"{KEY}.lora_up.weight": B},
        {"lora_adapter_metadata": '{"unet.use_rslora": true}'},
        "says `unet.use_rslora`",
    ),
    "no JSON": (
        {f"{KEY}.lora_down.weight": A, f"{KEY}.lora_up.weight": B},
        {"lora_adapter_metadata": "{"},
        "is no JSON",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_lora_of_the_base_is_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, metadata, told = BAD[case]
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, tmp_path / "l.safetensors", metadata
    )
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "l.safetensors", pipeline(tmp_path / "base"))
    assert told in caught.value.message
    assert "\n" not in caught.value.message


def test_a_lora_alone_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a LoRA, not a whole checkpoint"):
        open_checkpoint(write(tmp_path / "lora.safetensors", kohya))
