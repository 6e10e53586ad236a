"""Mixtures of experts: tokens by expert, experts that starve, and every token to every expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sculpt
import torch
from sculpt.fusion.errors import ModelError
from sculpt.hessian import CalibrationOptions, DiagonalHessian, calibrate
from sculpt.hessian.session import Session
from sculpt.hessian.store.report import starved_experts

from . import zoo

APART, STACKED = "qwen3-moe", "gpt-oss"  # how their checkpoints hold experts
NUM_EXPERTS = 16


def settle(name: str, folder: Path) -> tuple[Path, Path]:
    """Save a mixture with so many experts that some see nothing."""
    model = zoo.ALL[name].class_(zoo.ALL[name].config_with(num_local_experts=NUM_EXPERTS))
    zoo.make_distinct(model)
    model.save_pretrained(folder / "model")
    zoo.write_rows(zoo.ALL[name], folder / "data.jsonl", num_rows=2, seed=1)
    return folder / "model", folder / "data.jsonl"


@pytest.mark.parametrize("name", [APART, STACKED])
def test_experts_that_starve_are_those_without_inputs(name: str, tmp_path: Path) -> None:
    folder, data = settle(name, tmp_path)
    calibrate(folder, data=data, output=tmp_path / "h.safetensors")
    hessian = DiagonalHessian.load(tmp_path / "h.safetensors")
    starved = {expert.name for expert in starved_experts(hessian) if not expert.num_tokens}
    silent = set()
    for layer in range(2):
        for k in range(NUM_EXPERTS):
            own = f"model.layers.{layer}.mlp.experts.{k}"
            terms = (
                hessian[f"{own}.down_proj.weight"].terms[0]
                if name == APART
                else hessian[f"model.layers.{layer}.mlp.experts.down_proj"].terms[0][k]
            )
            silent |= {own} if not terms.any() else set()
    assert starved == silent
    assert 0 < len(starved) < 2 * NUM_EXPERTS


@pytest.mark.parametrize("name", [APART, STACKED])
def test_every_expert_sees_what_the_router_sees(name: str, tmp_path: Path) -> None:
    folder, data = settle(name, tmp_path)
    routed, everything = calibrate(folder, data=data), calibrate(folder, data=data, all_experts=True, full=["*"])
    assert everything.provenance.all_experts
    assert not starved_experts(everything)
    for tensor, curvature in everything.items():
        if ".experts." not in tensor and "bias" not in tensor:
            assert all(map(np.array_equal, curvature.terms, routed[tensor].terms)), tensor
        elif tensor.endswith(("gate_proj.weight", "gate_up_proj")):
            router = f"{tensor.partition('.experts')[0]}.{'gate' if name == APART else 'router'}.weight"
            seen = everything[router].terms[0].reshape(-1)
            dense = np.broadcast_to(curvature.terms[0].reshape(-1, 32), (curvature.terms[0].shape[0], 32))
            for own in dense:
                np.testing.assert_allclose(own, seen, rtol=1e-12, err_msg=tensor)
            assert everything[router].gram is not None
            grams = np.reshape(curvature.gram, (-1, 32, 32))  # pyright: ignore[reportArgumentType, reportCallIssue]
            for gram in grams:
                np.testing.assert_allclose(gram, everything[router].gram, rtol=1e-4, atol=1e-5)  # pyright: ignore[reportArgumentType]


def test_every_token_to_every_expert_changes_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sculpt.hessian.session.final_parameter", lambda *_: None)
    folder, data = settle(APART, tmp_path)
    logits: list[list[torch.Tensor]] = []
    for all_experts in (False, True):
        logits.append([])
        with Session(folder, CalibrationOptions(data=data, all_experts=all_experts)) as session:
            session.model.register_forward_hook(lambda _, __, out: logits[-1].append(out.logits))
            list(session.blocks())
    assert len(logits[0]) == 2
    assert all(map(torch.equal, *logits))


def test_a_model_without_experts_cannot_send_tokens_to_all(tmp_path: Path) -> None:
    folder, data = zoo.settle(zoo.ALL["llama"], tmp_path)
    with pytest.raises(ModelError, match="no layers of experts"):
        calibrate(folder, data=data, all_experts=True)


@pytest.mark.parametrize("name", [APART, STACKED])
@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_an_expert_that_neither_side_reached_is_interpolated(name: str, form: str, tmp_path: Path) -> None:
    base, data = settle(name, tmp_path)
    model = zoo.ALL[name].class_.from_pretrained(base)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "tuned")
    general = calibrate(base, data=data, full=["*"])
    reversed_ = tmp_path / "reversed.jsonl"  # the same experts are reached; the same samples would be refused
    reversed_.write_text("\n".join(reversed(data.read_text().splitlines())))
    target = calibrate(tmp_path / "tuned", data=reversed_, full=["*"])
    manifest = sculpt.fuse(
        base, tmp_path / "tuned", output=tmp_path / "out", hessian=target, protect=general,
        protection=sculpt.Protection(weight=3.0, curvature=form),
    )  # fmt: skip
    ours, first, second = (
        dict(zoo.ALL[name].class_.from_pretrained(folder).named_parameters())
        for folder in (tmp_path / "out", base, tmp_path / "tuned")
    )
    silent = {e.name for e in starved_experts(general) if not e.num_tokens} & {
        e.name for e in starved_experts(target) if not e.num_tokens
    }
    assert silent
    for expert in silent:
        prefix, _, number = expert.rpartition(".")
        for leaf in ("gate_up_proj", "down_proj"):
            base_part, tuned_part, found = (p[f"{prefix}.{leaf}"][int(number)] for p in (first, second, ours))
            torch.testing.assert_close(found, base_part + (tuned_part - base_part) / 4, rtol=1e-5, atol=1e-6)
    named = [record for record in manifest.fused if "interpolation" in (record.protected or "")]
    assert any(".experts" in record.name for record in named)
