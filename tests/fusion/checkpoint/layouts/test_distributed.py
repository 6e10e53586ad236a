"""Distributed checkpoints of torch: each saved by torch itself, and read as the same model."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sculpt
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*assuming the intent")
CONFIG = '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 40}'


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (40, 6), "model.layers.0.mlp.up_proj.weight": (10, 6)}
    shapes |= {"model.layers.0.mlp.experts": (3, 4, 6), "model.norm.weight": (6,), "lm_head.weight": (40, 6)}
    return {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16 if len(shape) > 1 else torch.float32)
        for name, shape in shapes.items()
    }


def saved(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def read_all(path: Path) -> None:
    source = open_checkpoint(path)
    for name in source.tensors:
        source.read(name)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("key", [None, "model", "state_dict", "module"])
def test_what_one_process_saves_is_the_model(key: str | None, tmp_path: Path) -> None:
    tensors = model(0)
    plain = open_checkpoint(saved(tmp_path / "plain", tensors))
    beside = {"optimizer": {"exp_avg": torch.ones(3)}, "step": 3} if key else {}
    dcp.save({key: tensors, **beside} if key else tensors, checkpoint_id=tmp_path / "dcp")
    found = open_checkpoint(tmp_path / "dcp")
    assert found.fingerprint == plain.fingerprint
    assert list(found.tensors) == sorted(plain.tensors)
    for name, info in found.tensors.items():
        assert (info.dtype, info.shape) == (plain.tensors[name].dtype, plain.tensors[name].shape)
        assert found.read(name, 1, 5).tobytes() == plain.read(name, 1, 5).tobytes()
        place = found.stored(name, 1, 5)
        assert place is not None
        assert place[0].read_bytes()[place[1] : place[2]] == plain.read(name, 1, 5).tobytes()
        found.release(name)
    assert found.said == (
        ("`optimizer`, `step` of `dcp` are left out: not the model's weights",) if key is not None else ()
    )


SAVING = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from pathlib import Path
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
folder = Path(sys.argv[1])
os.environ["RANK"] = str(int(os.fork() > 0))
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
tensors = load_file(folder / "tuned/model.safetensors")
for axis in (0, 1):
    cut = {k: distribute_tensor(t, mesh, [Shard(min(axis, t.ndim - 1))]) for k, t in tensors.items()}
    dcp.save({"model": cut}, checkpoint_id=folder / f"axis-{axis}")
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.held = torch.nn.ParameterDict({name.replace(".", "-"): t for name, t in tensors.items()})
model = fully_shard(Model(), mesh=mesh)
own = {name.removeprefix("held.").replace("-", "."): t for name, t in model.state_dict().items()}
compiled = {"_orig_mod." + name: t for name, t in own.items()}
dcp.save({"model": compiled}, checkpoint_id=folder / "checkpoint/pytorch_model_fsdp_0")
dist.destroy_process_group()
if os.environ["RANK"] == "1":
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a base, a fine-tune, and what two processes saved of the fine-tune."""
    folder = tmp_path_factory.mktemp("two")
    saved(folder / "base", model(0))
    saved(folder / "tuned", model(1))
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", SAVING, str(folder)], env=env, check=True, timeout=120)
    for file in ("config.json", "tokenizer_config.json"):
        (folder / "checkpoint" / file).write_text(CONFIG if file == "config.json" else "{}")
    return folder


@pytest.mark.parametrize("name", ["axis-0", "axis-1", "checkpoint", "checkpoint/pytorch_model_fsdp_0"])
def test_what_two_processes_save_fuses_to_the_same_bytes(name: str, of_two_processes: Path, tmp_path: Path) -> None:
    base, tuned = of_two_processes / "base", of_two_processes / "tuned"
    plain, path = open_checkpoint(tuned), of_two_processes / name
    found = open_checkpoint(path)
    assert found.fingerprint == plain.fingerprint
    method = sculpt.DareTies(sparsity=0.5)
    for output, one in (("plain", tuned), ("found", path)):
        sculpt.fuse(base, one, output=tmp_path / output, method=method)
    assert (tmp_path / "found/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()
    sculpt.verify(tmp_path / "found", [base, path])
    if name.startswith("checkpoint"):  # a model with configuration, whichever of the two folders was named
        assert found.config is not None
        assert found.config["vocab_size"] == 40
        assert dict(found.wrappers) == {"_orig_mod.": 5}
        assert {str(name) for name in found.companions()} == {"config.json", "tokenizer_config.json"}
        told = [said for said in found.said if "the folder above" in said]
        assert len(told) == (name != "checkpoint")


def test_a_distributed_base_gives_a_folder_that_anyone_loads(of_two_processes: Path, tmp_path: Path) -> None:
    settings = sculpt.Settings(seed=3)
    for output, base in (("plain", of_two_processes / "tuned"), ("found", of_two_processes / "checkpoint")):
        sculpt.fuse(base, of_two_processes / "base", output=tmp_path / output, method=sculpt.Dare(), settings=settings)
    found, plain = (load_file(tmp_path / output / "model.safetensors") for output in ("found", "plain"))
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    names = {file.name for file in (tmp_path / "found").iterdir()}
    assert names >= {"config.json", "tokenizer_config.json"}  # the fine-tune has none of its own
    assert not any("fsdp" in name or "distcp" in name for name in names)


def change(metadata: Path, edit: Callable[[Any], None]) -> None:
    content = pickle.loads(metadata.read_bytes())
    edit(content)
    metadata.write_bytes(pickle.dumps(content))


def outside(content: Any) -> None:
    next(iter(content.storage_data.values())).relative_path = "../../etc/passwd"


def too_large(content: Any) -> None:
    found = content.state_dict_metadata["model.model.norm.weight"]
    found.size = torch.Size([7])


def other_sizes(content: Any) -> None:
    found = content.state_dict_metadata["model.lm_head.weight"]
    found.size = found.chunks[0].sizes = torch.Size([6, 40])


def unplaced(content: Any) -> None:
    content.storage_data.clear()


def transformed(content: Any) -> None:
    next(iter(content.storage_data.values())).transform_descriptors = ["zstd"]


def complex_of_128(content: Any) -> None:
    content.state_dict_metadata["model.lm_head.weight"].properties.dtype = torch.complex128


def two_models(content: Any) -> None:
    content.planner_data["model.lm_head.weight"] = ("ema", "model", "lm_head.weight")


EDITS: dict[str, tuple[Callable[[Any], None], str]] = {
    "outside": (outside, "outside its folder, in `../../etc/passwd`"),
    "too large": (too_large, "`model.norm.weight` [7] of"),
    "other sizes": (other_sizes, "`.metadata` says bfloat16 [6, 40]"),
    "unplaced": (unplaced, "does not say where"),
    "transformed": (transformed, "is stored in another form (['zstd'])"),
    "dtype": (complex_of_128, "is complex128, which sculpt cannot read"),
    "two models": (two_models, "holds several models: `model`, `ema.model`"),
}


@pytest.mark.parametrize("case", EDITS)
def test_metadata_that_lies_is_refused(case: str, tmp_path: Path) -> None:
    dcp.save({"model": model(0)}, checkpoint_id=tmp_path)
    edit, told = EDITS[case]
    change(tmp_path / ".metadata", edit)
    assert told in refused(tmp_path)


def test_what_is_missing_or_cut_off_is_named(tmp_path: Path) -> None:
    dcp.save({"model": model(0)}, checkpoint_id=tmp_path / "whole")

    def copy(name: str) -> Path:
        return shutil.copytree(tmp_path / "whole", tmp_path / name)

    (copy("no metadata") / ".metadata").unlink()
    assert "has no `.metadata`" in refused(tmp_path / "no metadata")
    (copy("no data") / "__0_0.distcp").unlink()
    assert "__0_0.distcp` is missing, and `.metadata` names it" in refused(tmp_path / "no data")
    data = copy("cut") / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-700])
    assert "__0_0.distcp` is truncated: it ends before a part of `" in refused(tmp_path / "cut")
    metadata = copy("cut metadata") / ".metadata"
    metadata.write_bytes(metadata.read_bytes()[:-700])
    assert "cannot read `" in refused(tmp_path / "cut metadata")
    dcp.save({"optimizer": {"step": 3}}, checkpoint_id=tmp_path / "nothing")
    assert "holds no tensors" in refused(tmp_path / "nothing")


class Evil:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def test_metadata_that_runs_code_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dcp.save({"model": model(0)}, checkpoint_id=tmp_path / "dcp")

    shutil.copytree(tmp_path / "dcp", tmp_path / "in place")

    def plant(content: Any) -> None:
        content.storage_meta = Evil()

    def plant_in_place(content: Any) -> None:
        content.planner_data["model.lm_head.weight"] = Evil()

    change(tmp_path / "dcp/.metadata", plant)
    assert open_checkpoint(tmp_path / "dcp").tensors.keys() == model(0).keys()
    change(tmp_path / "in place/.metadata", plant_in_place)
    assert "was saved under something that is no key" in refused(tmp_path / "in place")
    assert not Path("owned").exists()


def test_the_base_lends_its_configuration_and_the_output_is_told_to_have_it(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", model(0))
    (base / "config.json").write_text(CONFIG)
    (base / "tokenizer_config.json").write_text("{}")
    dcp.save({"model": model(1)}, checkpoint_id=tmp_path / "dcp")
    alone, over = open_checkpoint(tmp_path / "dcp"), open_checkpoint(tmp_path / "dcp", base)
    assert alone.config is None
    assert (over.config, over.folder) == (open_checkpoint(base).config, base)
    assert over.companions() == {}
    assert over.fingerprint == alone.fingerprint
    settings = sculpt.Settings(load_check=False)
    manifest = sculpt.fuse(
        base, tmp_path / "dcp", output=tmp_path / "out", method=sculpt.Dare(), settings=settings, overwrite=True
    )
    assert any("has no `config.json`: the output has that of" in note for note in manifest.notes)
    assert (tmp_path / "out/config.json").read_text() == CONFIG
    assert (tmp_path / "out/tokenizer_config.json").exists()


def test_a_patch_of_shards_makes_the_model_again(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", model(0))
    dcp.save({"model": model(1)}, checkpoint_id=tmp_path / "dcp")
    sculpt.pack(base, tmp_path / "dcp", output=tmp_path / "p.safetensors")
    sculpt.apply_patch(base, tmp_path / "p.safetensors", output=tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == model(1).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model(1).items())
