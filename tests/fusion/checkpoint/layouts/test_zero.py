"""ZeRO checkpoints, cut here as DeepSpeed cuts them, and the same weights read from them.

DeepSpeed's own `zero_to_fp32.py` (0.16.9) gathers the same tensors of these folders.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import sculpt
import torch
from safetensors.torch import save_file
from sculpt.fusion.checkpoint import open_checkpoint
from sculpt.fusion.errors import CheckpointError


class ZeroStageEnum(IntEnum):
    """DeepSpeed pickles its own."""

    gradients = 2
    weights = 3


SHAPES = {"model.embed_tokens.weight": (11, 3), "model.layers.0.up_proj.weight": (7, 3), "model.norm.weight": (3,)}
GROUPS = (("model.embed_tokens.weight", "model.layers.0.up_proj.weight"), ("model.norm.weight",))  # by weight decay
FROZEN = "model.layers.0.frozen.weight"


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in {**SHAPES, FROZEN: (5, 2)}.items()}


def padded(flat: torch.Tensor, multiple: int) -> torch.Tensor:
    return torch.cat([flat, torch.full((-len(flat) % multiple,), torch.nan)])


def save_zero(folder: Path, tensors: dict[str, torch.Tensor], *, stage: int, ranks: int) -> Path:
    """Write what DeepSpeed writes of a model, each process its part."""
    step = folder / "global_step9"
    step.mkdir(parents=True)
    (folder / "latest").write_text("global_step9")
    (folder / "zero_to_fp32.py").write_text("")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    frozen = tensors[FROZEN].half()
    slices = padded(frozen.reshape(-1).float(), ranks).half().chunk(ranks)
    common = {
        "buffer_names": ["rotary.scale"],
        "param_shapes": [{name: torch.Size(SHAPES[name]) for name in own} for own in GROUPS],
        "shared_params": {"lm_head.weight": "model.embed_tokens.weight"},
        "frozen_param_shapes": {FROZEN: frozen.shape},
        "ds_config": {"zero_optimization": {"stage": stage}},
        "ds_version": "0.16.9",
    }
    buffers = {"rotary.scale": torch.tensor([2.0])}
    for rank in range(ranks):
        if stage < 3:
            flat = [padded(torch.cat([tensors[name].reshape(-1) for name in own]), 2 * ranks) for own in GROUPS]
            parts = [group.chunk(ranks)[rank].clone() for group in flat]
            key = "single_partition_of_fp32_groups"
        else:
            own = [padded(tensors[name].reshape(-1), ranks).chunk(ranks)[rank] for group in GROUPS for name in group]
            parts = [torch.cat(own[:2]), torch.cat(own[2:])]  # subgroups, each of whole slices
            key = "fp32_flat_groups"
        state = {"zero_stage": ZeroStageEnum(3 if stage == 3 else 2), "partition_count": ranks, key: parts}
        state["optimizer_state_dict"] = {"exp_avg": torch.zeros(3)}
        prefix = "bf16_" if stage == 1 else ""
        name = f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, "ds_config": {}}, step / name)
        if stage == 3:
            model = {"module": buffers, "frozen_param_fragments": {FROZEN: slices[rank].clone()}, **common}
            torch.save(model, step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        elif rank == 0:
            module = {name: tensor.half() for name, tensor in tensors.items()} | buffers
            model = {"module": module, "frozen_param_fragments": {FROZEN: frozen}, **common}
            torch.save(model, step / "mp_rank_00_model_states.pt")
    return folder


@pytest.mark.parametrize("named", ["", "global_step9"])
@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (2, 2), (2, 12), (3, 1), (3, 2), (3, 12)])
def test_the_float32_weights_are_put_together(stage: int, ranks: int, named: str, tmp_path: Path) -> None:
    tensors = weights(0)
    found = open_checkpoint(save_zero(tmp_path / "zero", tensors, stage=stage, ranks=ranks) / named)
    expected = {**tensors, FROZEN: tensors[FROZEN].half(), "rotary.scale": torch.tensor([2.0])}
    expected["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found.tensors[name].kind.torch, found.tensors[name].shape) == (str(tensor.dtype)[6:], tensor.shape)
        assert found.read(name).tobytes() == tensor.numpy().tobytes()
        stop = tensor.numel() // 2 + 1
        assert found.read(name, stop // 2, stop).tolist() == tensor.reshape(-1)[stop // 2 : stop].tolist()
        found.release(name)
    assert found.config is not None
    assert found.said[0] == f"the weights of `global_step9` are the optimiser's, in float32, of {ranks} processes"
    assert {str(name) for name in found.companions()} == {"config.json"}


def test_a_zero_checkpoint_fuses_as_its_gathered_weights_do(tmp_path: Path) -> None:
    base, tuned = weights(0), weights(1)
    zero = save_zero(tmp_path / "zero", tuned, stage=3, ranks=2)
    gathered = {**tuned, FROZEN: tuned[FROZEN].half()}
    for name, tensors in (("base", {k: t.bfloat16() for k, t in base.items()}), ("gathered", gathered)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    policies = sculpt.Policies(on_extra="drop")
    for name in ("zero", "gathered"):
        settings = sculpt.Settings(policies=policies, load_check=False)
        sculpt.fuse(
            tmp_path / "base", tmp_path / name, output=tmp_path / f"out-{name}", method=sculpt.Dare(), settings=settings
        )
    found, expected = ((tmp_path / f"out-{name}/model.safetensors").read_bytes() for name in ("zero", "gathered"))
    assert found == expected
    assert sculpt.verify(tmp_path / "out-zero", [zero]).num_files > 4


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "global_step9" / name).unlink()


def cut(folder: Path) -> None:
    file = folder / "global_step9/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:-300])


def change(name: str, edit: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "global_step9" / name
        content = torch.load(file, weights_only=False)
        edit(content)
        torch.save(content, file)

    return apply


def larger(content: Any) -> None:
    content["param_shapes"][0]["model.embed_tokens.weight"] = torch.Size((200, 3))


PART = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
DAMAGES: dict[str, tuple[int, Callable[[Path], Any], str]] = {
    "a part is missing": (2, without(PART), "holds 1 of the 2 files `*_optim_states.pt`"),
    "a part is missing of stage 3": (3, without(PART), "holds 1 of the 2 files"),
    "a part is cut off": (3, cut, f"cannot read `{{}}/global_step9/{PART}`"),
    "shapes of others": (2, change("mp_rank_00_model_states.pt", larger), "does not hold its parameters"),
    "shapes of others of stage 3": (
        *(3, change("zero_pp_rank_0_mp_rank_00_model_states.pt", larger), "does not hold its parameters"),
    ),
    "no shapes": (2, change("mp_rank_00_model_states.pt", lambda c: c.pop("param_shapes")), "does not say the shapes"),
    "no optimiser": (2, change(PART, lambda c: c.clear()), f"{PART}` holds no state of a ZeRO optimiser"),
    "another step": (2, lambda f: (f / "latest").write_text("global_step7"), "names `global_step7`, which is not"),
    "split in two": (2, lambda f: (f / "global_step9/mp_rank_01_model_states.pt").touch(), "(`mp_rank_01`)"),
    "nonsense": (2, change("mp_rank_00_model_states.pt", lambda c: c.update(param_shapes=3)), "no ZeRO checkpoint"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_what_does_not_add_up_is_refused(case: str, tmp_path: Path) -> None:
    stage, damage, told = DAMAGES[case]
    folder = save_zero(tmp_path / "zero", weights(0), stage=stage, ranks=2)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert told.format(folder) in caught.value.message
    assert "\n" not in caught.value.message


def test_without_the_optimiser_the_weights_in_16_bits_are_taken(tmp_path: Path) -> None:
    folder = save_zero(tmp_path / "zero", weights(0), stage=2, ranks=2)
    for file in (folder / "global_step9").glob("*_optim_states.pt"):
        file.unlink()
    found = open_checkpoint(folder)
    assert found.tensors["model.norm.weight"].kind.torch == "float16"
    assert found.said == ("`global_step9` has no `*_optim_states.pt`: the weights are those of `module`",)
