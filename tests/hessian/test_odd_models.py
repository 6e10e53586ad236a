"""Models that do what models should not: loop, use weights behind modules' backs, keep parameters where they like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sculpt.fusion.errors import ModelError
from sculpt.hessian import CalibrationOptions, DiagonalHessian, calibrate
from sculpt.hessian.forward import journal
from sculpt.hessian.session import Session
from torch import nn

from . import zoo


class OddConfig(transformers.PreTrainedConfig):
    model_type = "sculpt-odd"

    def __init__(self, loops: int = 1, **given: Any) -> None:
        super().__init__(**given)
        self.loops = loops
        self.hidden_size = 8
        self.vocab_size = 50


class OddBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 12)
        self.two = nn.Linear(12, 8, bias=False)
        self.mix = nn.Parameter(torch.zeros(2, 8, 4))
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.einsum("bsd,hde->bshe", x, self.mix).flatten(2)  # an einsum with a parameter
        return x + self.two(torch.tanh(self.one(x))) + inner * self.gain


class OddModel(transformers.PreTrainedModel):
    config_class = OddConfig
    base_model_prefix = "model"

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(50, 8)
        self.start = nn.Parameter(torch.zeros(1, 1, 8))
        self.shift = nn.Parameter(torch.zeros(8))
        self.blocks = nn.ModuleList([OddBlock(), OddBlock()])
        self.out = nn.Linear(8, 50, bias=False)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.embed(input_ids) + self.shift
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1)
        for _ in range(self.config.loops):
            x = self.blocks[1].one(x)[..., :8] + x  # a part of a block that comes later
            for block in self.blocks:
                x = block(x)
        return nn.functional.linear(x, self.out.weight) + nn.functional.linear(x, self.embed.weight)


transformers.AutoConfig.register("sculpt-odd", OddConfig)
transformers.AutoModel.register(OddConfig, OddModel)


def settle(folder: Path, **given: Any) -> tuple[Path, Path]:
    torch.manual_seed(0)
    model = OddModel(OddConfig(architectures=None, **given))
    zoo.make_distinct(model)
    model.save_pretrained(folder / "odd")
    rows = [{"input_ids": [k + 1, k + 2, 7]} for k in range(4)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "odd", folder / "data.jsonl"


def expected(folder: Path, data: Path) -> dict[str, np.ndarray]:
    """Return column sums of the linear weights by hooks, and of what is used without a module by hand."""
    model = OddModel.from_pretrained(folder).eval()
    sums: dict[str, Any] = {}

    def add(name: str, x: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + x.double().reshape(-1, x.shape[-1]).square().sum(0).numpy()

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "out":
            module.register_forward_pre_hook(lambda _, args, name=name: add(f"{name}.weight", args[0]))
        if isinstance(module, OddBlock):
            module.register_forward_pre_hook(lambda _, args, name=name: add(f"{name}.mix", args[0]))
    last = model.blocks[1]
    assert isinstance(last, nn.Module)
    final: list[torch.Tensor] = []
    last.register_forward_hook(lambda _, __, out: final.append(out))
    with torch.no_grad():
        for line in data.read_text().splitlines():
            model(input_ids=torch.tensor([json.loads(line)["input_ids"]]))
            add("out.weight", final[-1])
    return sums


def check(hessian: DiagonalHessian, sums: dict[str, np.ndarray]) -> None:
    for name, own in sums.items():
        if name.endswith("mix"):
            np.testing.assert_allclose(hessian[name].terms[0].reshape(-1), own, rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_allclose(hessian[name].terms[0][0], own, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("loops", [1, 3])
def test_an_odd_model_gives_the_statistics_of_hooks(loops: int, tmp_path: Path) -> None:
    folder, data = settle(tmp_path, loops=loops)
    hessian = calibrate(folder, data=data)
    check(hessian, expected(folder, data))
    assert {term.shape for term in hessian["embed.weight"].terms} == {(50, 1), (1, 8)}
    assert hessian["shift"].terms[0].tolist() == [12.0]
    assert hessian["blocks.0.gain"].num_tokens == 16 * loops
    assert set(hessian.why_missing) == {"start"}
    assert "cat" in hessian.why_missing["start"]


def test_a_loop_reads_a_block_twice_at_most(tmp_path: Path) -> None:
    folder, data = settle(tmp_path, loops=4)
    with Session(folder, CalibrationOptions(data=data)) as session:
        for _ in session.blocks(may_return=True):
            pass
        assert max(session.weights.reads.values()) == 2


@pytest.mark.parametrize("full", [(), ("*",)], ids=["diagonal", "full"])
def test_a_loop_is_refused_where_blocks_are_handed_out(full: tuple[str, ...], tmp_path: Path) -> None:
    folder, data = settle(tmp_path, loops=2)
    with (
        Session(folder, CalibrationOptions(data=data, full=full)) as session,
        pytest.raises(ModelError, match=r"runs `blocks\.\d.*` more than once"),
    ):
        list(session.blocks())


def test_full_matrices_of_a_loop_are_held_in_memory(tmp_path: Path) -> None:
    folder, data = settle(tmp_path, loops=3)
    written = calibrate(folder, data=data, full=["*"], output=tmp_path / "h.safetensors")
    held = calibrate(folder, data=data, full=["*"])
    assert sum(curvature.gram is not None for curvature in held.values()) > 3
    for name, curvature in held.items():
        assert (curvature.gram is None) == (written[name].gram is None), name
        if curvature.gram is not None:
            np.testing.assert_array_equal(curvature.gram, written[name].gram)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.glob("*.partial"))


def test_a_loop_over_the_changed_blocks_is_measured_to_its_end(tmp_path: Path) -> None:
    folder, data = settle(tmp_path, loops=3)
    whole = calibrate(folder, data=data)
    tensors = load_file(folder / "model.safetensors")
    for name in ("blocks.0.one.weight", "blocks.1.two.weight"):
        tensors[name] = tensors[name] + 1
    (tmp_path / "base").mkdir()
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "base" / "config.json").write_text((folder / "config.json").read_text())
    found = calibrate(folder, data=data, only_changed=tmp_path / "base")
    for name in ("blocks.0.one.weight", "blocks.1.two.weight"):
        np.testing.assert_array_equal(found[name].terms[0], whole[name].terms[0])


def test_a_loop_that_is_killed_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "EVERY_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    folder, data = settle(tmp_path, loops=2)
    calibrate(folder, data=data, output=tmp_path / "whole")
    left = [0]

    def kill(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    for _ in range(5):
        left[0] = 3
        try:
            calibrate(folder, data=data, output=tmp_path / "out", progress=kill)
        except Killed:
            continue
        break
    if not (tmp_path / "out").exists():
        calibrate(folder, data=data, output=tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
