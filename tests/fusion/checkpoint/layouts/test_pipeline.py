"""Pipelines of diffusers and their components: the same names come out, whatever they are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sculpt
from safetensors.numpy import load_file, save_file
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.errors import CheckpointError, MethodError

UNET, TEXTS = "diffusion_pytorch_model", "model"


def component(folder: Path, stem: str, seed: int, *, variant: str = "", shards: int = 1) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {f"blocks.{k}.weight": rng.standard_normal((4, 3)).astype(np.float32) for k in range(4)}
    (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    end = f".{variant}" if variant else ""
    if shards == 1:
        save_file(tensors, folder / f"{stem}{end}.safetensors", {"format": "pt"})
        return folder
    place = {}
    for number in range(shards):
        name = f"{stem}{end}-{number + 1:05d}-of-{shards:05d}.safetensors"
        own = {key: tensors[key] for key in list(tensors)[number::shards]}
        save_file(own, folder / name, {"format": "pt"})
        place |= dict.fromkeys(own, name)
    (folder / f"{stem}.safetensors.index{end}.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder


def pipeline(folder: Path, seed: int, *, variant: str = "", shards: int = 1) -> Path:
    component(folder / "unet", UNET, seed, variant=variant, shards=shards)
    component(folder / "text_encoder", TEXTS, seed + 9, variant=variant)
    for name, text in (("scheduler/scheduler_config.json", "{}"), ("tokenizer/vocab.json", "{}")):
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    parts = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "scheduler": "DDIMScheduler"}
    listed = {"_class_name": "StableDiffusionPipeline", **{key: ["diffusers", kind] for key, kind in parts.items()}}
    (folder / "model_index.json").write_text(json.dumps({**listed, "safety_checker": [None, None]}))
    return folder


def files_in(folder: Path) -> set[str]:
    own = {"README.md", "sculpt-manifest.json"}
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - own


def halfway(base: Path, tuned: Path, output: Path) -> None:
    """Check that every weight file of an output holds the mean of two models, under the names of theirs."""
    for file in output.rglob("*.safetensors"):
        name = file.relative_to(output)
        found, first, second = (load_file(folder / name) for folder in (output, base, tuned))
        assert found.keys() == first.keys()
        for key, tensor in found.items():
            np.testing.assert_allclose(tensor, (first[key] + second[key]) / 2, atol=1e-6)


@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize("shards", [1, 2])
def test_one_fuse_makes_a_whole_pipeline(variant: str, shards: int, tmp_path: Path) -> None:
    base, tuned = (pipeline(tmp_path / f"m{k}", k, variant=variant, shards=shards) for k in range(2))
    before = files_in(base)
    end = f".{variant}" if variant else ""
    (base / f"unet/diffusion_pytorch_model{end}.bin").write_bytes(b"other weights, which are not these")
    (tuned / "v1-pruned.safetensors").write_bytes(b"the same in one file")
    output = tmp_path / "out"
    manifest = sculpt.fuse(base, tuned, output=output, method=sculpt.TaskArithmetic(scale=0.5))
    assert files_in(output) == before
    halfway(base, tuned, output)
    assert {record.name.partition("/")[0] for record in manifest.tensors} == {"unet", "text_encoder"}
    assert {record.name for record in manifest.outputs} == {name for name in before if name.endswith(".safetensors")}
    assert sculpt.verify(output, [base, tuned]).num_files > len(before)
    index = output / f"unet/diffusion_pytorch_model.safetensors.index{end}.json"
    assert index.exists() == (shards > 1)
    if shards > 1:
        assert set(json.loads(index.read_text())["weight_map"]) == {f"blocks.{k}.weight" for k in range(4)}


@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("stem", [UNET, TEXTS])
def test_a_component_keeps_the_names_of_its_files(stem: str, variant: str, shards: int, tmp_path: Path) -> None:
    base, tuned = (component(tmp_path / f"m{k}", stem, k, variant=variant, shards=shards) for k in range(2))
    sculpt.fuse(base, tuned, output=tmp_path / "out", method=sculpt.TaskArithmetic(scale=0.5))
    assert files_in(tmp_path / "out") == files_in(base)
    halfway(base, tuned, tmp_path / "out")


def test_of_several_components_some_are_selected(tmp_path: Path) -> None:
    base, tuned = (pipeline(tmp_path / f"m{k}", k) for k in range(2))
    settings = sculpt.Settings(selection=sculpt.Selection(include=("unet/*",)))
    sculpt.fuse(base, tuned, output=tmp_path / "out", method=sculpt.TaskArithmetic(scale=1.0), settings=settings)
    for name, origin in (("unet/diffusion_pytorch_model", tuned), ("text_encoder/model", base)):
        found, expected = (load_file(folder / f"{name}.safetensors") for folder in (tmp_path / "out", origin))
        assert all(np.allclose(found[key], expected[key], atol=1e-6) for key in found)


def test_variants_are_told_apart(tmp_path: Path) -> None:
    folder = component(tmp_path / "m", UNET, 0, variant="fp16")
    assert open_checkpoint(folder).tensors
    (folder / "diffusion_pytorch_model.ema.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds the variants `ema`, `fp16` of its weights"):
        open_checkpoint(folder)


def test_a_pipeline_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    with pytest.raises(CheckpointError, match="no component of it has weights"):
        open_checkpoint(tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is not a JSON object"):
        open_checkpoint(tmp_path)


@pytest.mark.filterwarnings("default")
def test_diffusers_loads_what_comes_out(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": (4,)}
    models = []
    for name in ("base", "tuned"):
        torch.manual_seed(len(models))
        unet = diffusers.UNet2DModel(sample_size=4, layers_per_block=1, norm_num_groups=2, **blocks)
        diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(tmp_path / name)
        models.append(unet)
    sculpt.fuse(tmp_path / "base", tmp_path / "tuned", output=tmp_path / "out", method=sculpt.TaskArithmetic(scale=0.5))
    found = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out").unet
    for own, first, second in zip(*(model.parameters() for model in (found, *models)), strict=True):
        torch.testing.assert_close(own, (first + second) / 2)


def test_a_patch_is_of_one_model(tmp_path: Path) -> None:
    base, tuned = (pipeline(tmp_path / f"m{k}", k) for k in range(2))
    with pytest.raises(CheckpointError, match="is a pipeline of several models, and a patch is of one"):
        sculpt.pack(base, tuned, output=tmp_path / "p.safetensors")
    with pytest.raises(MethodError, match="is a pipeline of several models, and a patch is of one"):
        sculpt.fuse(base, tuned, output=tmp_path / "p.safetensors", settings=sculpt.Settings(emit="patch"))
    assert not (tmp_path / "p.safetensors").exists()
