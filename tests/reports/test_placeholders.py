"""What people take for checkpoints, and models that change nothing: each is named, with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
from safetensors.numpy import save_file
from sculpt.api import prepare_fuse
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.errors import SculptError
from sculpt.fusion.methods import METHODS

Tensors = dict[str, np.ndarray]
Make = Callable[..., Path]
SHAPES = {"model.layers.0.q_proj.weight": (8, 8), "model.norm.weight": (8,), "lm_head.weight": (9, 8)}


def small(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def adapter(folder: Path, *, b: np.ndarray, a: np.ndarray | None = None) -> Path:
    folder.mkdir()
    module = "base_model.model.model.layers.0.q_proj"
    a = np.ones((2, 8), np.float32) if a is None else a
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    return folder


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"
# peft#297, DeepSpeed#2413, accelerate#2848, verl#533: the files of a folder, the sentence, the way out.
FOLDERS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "an LFS pointer": (
        {"model.safetensors": LFS},
        "model.safetensors` is a pointer of git-LFS to 4,976,698,672 bytes, not the file itself",
        "git lfs pull",
    ),
    "an LFS pointer as .bin": ({"pytorch_model.bin": LFS}, "is a pointer of git-LFS", "git lfs pull"),
    "a GGUF file as .bin": ({"pytorch_model.bin": b"GGUF\3\0\0\0"}, "is a GGUF file", "name it `*.gguf`"),
    "several of GGUF": ({"q4.gguf": b"", "q8.gguf": b""}, "2 GGUF models (`q4.gguf`, `q8.gguf`)", "name the file"),
    "a part of GGUF": ({"q4-00001-of-00002.gguf": b""}, "`q4-00002-of-00002.gguf` is missing", "download complete"),
    "an FSDP save that was cut off": (
        {"pytorch_model_fsdp_0/__0_0.distcp": b""},
        "pytorch_model_fsdp_0` has no `.metadata`",
        "was the save cut off?",
    ),
    "DeepSpeed's, without its step": ({"zero_to_fp32.py": b""}, "what DeepSpeed puts beside its shards", "global_step"),
    "Meta's, a part of it": ({"consolidated.01.pth": b""}, "has no `consolidated.00.pth`", "is the download complete?"),
    "Megatron's": ({"mp_rank_00/model_optim_rng.pt": b""}, "Megatron's shards", "tools of the trainer"),
    "verl's": ({"model_world_size_2_rank_0.pt": b""}, "verl's shards", "verl.model_merger"),
    "ONNX": ({"model.onnx": b""}, "an ONNX graph", "converted from"),
    "OpenVINO": ({"openvino_model.xml": b""}, "an OpenVINO model", "converted from"),
    "MLX's old layout": ({"weights.npz": b""}, "arrays of NumPy", "converted from"),
    "TensorFlow": ({"tf_model.h5": b""}, "weights of TensorFlow", "save_pretrained"),
    "Flax": ({"flax_model.msgpack": b""}, "weights of Flax", "save_pretrained"),
    "a training's": ({"checkpoint-50/model.safetensors": b""}, "its checkpoints in folders", "name one of them"),
    "a named adapter": ({"only/adapter_config.json": b"{}"}, "adapters in folders of their own", "name one of them"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_what_is_no_checkpoint_is_named(case: str, tmp_path: Path) -> None:
    files, told, hint = FOLDERS[case]
    for name, content in files.items():
        file = tmp_path / "model" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with pytest.raises(SculptError) as caught:
        open_checkpoint(tmp_path / "model")
    assert told in caught.value.message
    assert hint in (caught.value.hint or "")


def test_empty_tensors_are_what_zero_3_did_not_gather(make_checkpoint: Make, tmp_path: Path) -> None:
    """peft#297, #1443, #2450, #1328, accelerate#3508, OpenRLHF#436, #651; an IndexError, or a hint to copy them."""
    base = make_checkpoint("base", small(0))
    empty = adapter(tmp_path / "adapter", a=np.empty(0, np.float32), b=np.empty(0, np.float32))
    whole = make_checkpoint("whole", {name: np.empty(0, np.float32) for name in SHAPES})
    partly = make_checkpoint("partly", {**small(1), "lm_head.weight": np.empty(0, np.float32)})
    policies = sculpt.Policies(on_mismatch="take-tuned")
    for tuned in (empty, whole, partly):
        with pytest.raises(SculptError, match="ZeRO-3 saves such tensors unless it gathers them") as caught:
            prepare_fuse(base, tuned, output=tmp_path / "out", settings=sculpt.Settings(policies=policies))
        assert "zero_to_fp32.py" in (caught.value.hint or "")
        assert not caught.value.ways


LORAS = {
    "kohya's": "lora_unet_down_blocks_0_attn.lora_down.weight",  # sd-scripts
    "diffusers'": "unet.down_blocks.0.attn.to_q_lora.down.weight",
    "LyCORIS'": "lora_unet_down_blocks_0_attn.hada_w1_a",
    "MLX's": "model.layers.0.self_attn.q_proj.lora_a",
    "PEFT's": "base_model.model.model.layers.0.q_proj.lora_A.weight",
}


@pytest.mark.parametrize("layout", LORAS)
def test_a_lora_without_its_configuration_is_no_checkpoint(layout: str, make_checkpoint: Make, tmp_path: Path) -> None:
    base, tuned = (
        make_checkpoint("base", small(0)),
        make_checkpoint("tuned", {LORAS[layout]: np.ones((2, 8), np.float32)}),
    )
    with pytest.raises(SculptError, match=r"holds the factors of a LoRA") as caught:
        prepare_fuse(base, tuned, output=tmp_path / "out")
    assert layout in caught.value.message


@pytest.mark.parametrize("key", ["module", "model", "state_dict", "model_state_dict"])
def test_a_model_beside_its_optimiser_is_found(key: str, tmp_path: Path) -> None:
    import torch

    content = {key: {"w": torch.arange(3.0)}, "optimizer": {"step": 3}, "epoch": 1, "callbacks": Anything()}
    torch.save(content, tmp_path / "model.ckpt")
    found = open_checkpoint(tmp_path / "model.ckpt")
    assert found.read("w").tolist() == [0, 1, 2]
    assert found.said == ("`optimizer`, `epoch`, `callbacks` of `model.ckpt` are left out: not the model's weights",)


class Anything:
    """What a training pickles beside its weights."""


@pytest.mark.parametrize("value", [Anything(), "DTensor"])
def test_torchs_advice_to_run_a_files_code_is_not_passed_on(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """axolotl#3294 for DTensors."""
    import torch

    if value == "DTensor":

        def load(*_: Any, **__: Any) -> Any:
            raise RuntimeError("`torch.distributed.tensor` must be imported to load DTensors")

        monkeypatch.setattr(torch, "load", load)
    is_old = value == "DTensor"  # what torch itself still reads
    torch.save({"w": value}, tmp_path / "model.bin", _use_new_zipfile_serialization=not is_old)
    with pytest.raises(SculptError) as caught:
        open_checkpoint(tmp_path / "model.bin")
    told = f"{caught.value.message} {caught.value.hint}"
    assert "weights_only" not in told
    assert ("holds DTensors" if value == "DTensor" else "Anything`, which only running") in told


def test_models_that_change_nothing_are_told(make_checkpoint: Make, tmp_path: Path) -> None:
    """LLaMA-Factory#8134: "merge has no effect"."""
    base, other = make_checkpoint("base", small(0)), make_checkpoint("other", small(1))
    again, once_more = make_checkpoint("again", small(0)), make_checkpoint("once-more", small(1))
    zero = adapter(tmp_path / "zero", b=np.zeros((8, 2), np.float32))
    models = [again, other, once_more, zero]
    warnings = prepare_fuse(base, models, output=tmp_path / "out", method=sculpt.TaskArithmetic()).plan.warnings
    assert warnings == (
        f"`{again}` and `{base}` are the same model: sampled values of all tensors agree",
        f"`{once_more}` and `{other}` are the same model: sampled values of all tensors agree",
        f"`{zero}` changes nothing: every B of the adapter is zero, as it is before training",
    )


@pytest.mark.parametrize("name", ["dare", "dare-ties"])
def test_what_was_dropped_is_told_apart_from_what_never_changed(
    name: str, make_checkpoint: Make, tmp_path: Path
) -> None:
    """At sparsity 1 the output is the base, and 0.00% of the deltas were zero, of 100% that were asked for."""
    base = small(0)
    tuned = {key: tensor + (np.arange(tensor.size).reshape(tensor.shape) % 2) for key, tensor in base.items()}
    paths = make_checkpoint("base", base), make_checkpoint("tuned", {k: t.astype(np.float32) for k, t in tuned.items()})
    manifest = sculpt.fuse(*paths, output=tmp_path / "out", method=METHODS[name](sparsity=1.0))  # pyright: ignore[reportCallIssue]
    assert manifest.unchanged() == pytest.approx(0.5, abs=0.01)
    assert manifest.dropped() == manifest.realised_sparsity() == 1
    asked = " (asked for 100.00%)"
    expected = "100.00% of the deltas that are not zero were dropped (asked for 100.00%); 50."
    assert manifest.told_sparsity(asked).startswith(expected)


def test_the_union_of_several_models_is_called_one(make_checkpoint: Make, tmp_path: Path) -> None:
    paths = [make_checkpoint(name, small(seed)) for seed, name in enumerate(("base", "one", "two"))]
    method = sculpt.DareTies(sparsity=0.9)
    manifest = sculpt.fuse(paths[0], paths[1:], output=tmp_path / "out", method=method)
    told = manifest.told_sparsity(" (asked for 90.00%)")
    assert told.startswith("In ")
    assert told.endswith(
        "% of the union of 2 models' changes no delta was kept (asked for 90.00% of each model's deltas)"
    )


def test_what_is_copied_and_different_is_told_apart_from_what_is_equal(make_checkpoint: Make, tmp_path: Path) -> None:
    """A projector that was trained and not selected is lost, and the plan did not show it."""
    base, tuned = small(0), {**small(1), "model.norm.weight": small(0)["model.norm.weight"]}
    paths = make_checkpoint("base", base), make_checkpoint("tuned", tuned)
    settings = sculpt.Settings(selection=sculpt.Selection(include=("*q_proj*",)))
    manifest = sculpt.fuse(*paths, output=tmp_path / "out", method=sculpt.TaskArithmetic(), settings=settings)
    found = {record.name: (record.action, record.differs) for record in manifest.tensors}
    assert found == {
        "model.layers.0.q_proj.weight": ("fuse", None),
        "model.norm.weight": ("copy", False),
        "lm_head.weight": ("copy", True),
    }
