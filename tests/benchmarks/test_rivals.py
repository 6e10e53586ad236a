"""The methods that are only compared with: each against its formula or released code, worked out in another way."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
from safetensors.numpy import load_file, save_file
from sculpt.benchmarks.forgetting import sequential
from sculpt.benchmarks.forgetting.rivals import RIVALS, Ace, Aim, Cgm, DgHard, NullSpace, WudiAdam, measure
from sculpt.benchmarks.forgetting.rivals.__main__ import main as run
from sculpt.data.example import Example
from sculpt.fusion.arithmetic.curvature import Curvature
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}


def pair(seed: int, shape: tuple[int, ...], num_tuned: int = 1, size: float = 0.1) -> list[np.ndarray]:
    """Return a base and fine-tunes, float64."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape)
    return [base, *(base + size * rng.standard_normal(shape) for _ in range(num_tuned))]


def squares(values: np.ndarray, count: int = 8) -> Curvature:
    """Return statistics of which these are the means."""
    return Curvature(terms=(values * count,), num_tokens=count)


def test_a_rival_runs_on_checkpoints_as_a_command_does(tmp_path: Path) -> None:
    base, tuned = pair(16, (40, 60), size=0.3)
    for name, tensor in (("base", base), ("tuned", tuned)):
        save_file({"layers.0.weight": tensor}, tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("base", "tuned")]
    run(["dg-hard", *files, "--set", "threshold=0.5", "-o", str(tmp_path / "out")])
    found = load_file(next((tmp_path / "out").glob("*.safetensors")))["layers.0.weight"]
    np.testing.assert_array_equal(found, sculpt.apply(DgHard(threshold=0.5), base, tuned))
    assert "**DG-Hard**" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def llama(seed: int) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).eval()


def tuned_of(base: Any, seed: int) -> Any:
    """Return a copy of a model, moved."""
    torch.manual_seed(seed)
    found = deepcopy(base)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return found


def samples(seed: int, count: int = 3, length: int = 9) -> list[Example]:
    """Return samples of which the last six tokens are to be predicted."""
    ids = np.random.default_rng(seed).integers(0, 40, (count, length))
    return [Example.of_tokens(row.tolist(), [-100] * (length - 6) + [0] * 6) for row in ids]


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (41, 41), (30, 30)])
def test_dg_hard_is_the_released_cut(shape: tuple[int, int]) -> None:
    base, noise = pair(0, shape)
    rng = np.random.default_rng(1)
    tuned = noise + 3 * rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))
    beta = min(shape) / max(shape)
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2
    grid = np.linspace(low, high, 200_001)
    density = np.sqrt(np.maximum((high - grid) * (grid - low), 0)) / (2 * np.pi * beta * np.where(grid > 0, grid, 1))
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    median = np.sqrt(np.interp(0.5, below / below[-1], grid))
    omega = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    u, s, vh = np.linalg.svd(tuned - base, full_matrices=False)
    cut = 0.9 * omega * np.sort(s)[(len(s) - 1) // 2] / median
    expected, kept = base.copy(), 0
    for k in range(len(s)):
        if s[k] > cut:
            expected, kept = expected + s[k] * np.outer(u[:, k], vh[k]), kept + 1
    found = sculpt.apply(DgHard(threshold=0.9), base, tuned)
    if base.size < 1024:
        np.testing.assert_allclose(found, tuned, rtol=1e-12)
    else:
        assert 0 < kept < len(s)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sizes", [(10.0, 11.0), (1.0, 0.03, 30.0)], ids=["alike", "unequal"])
def test_ace_is_the_released_code(sizes: tuple[float, ...]) -> None:
    base = pair(2, (14, 9), 0)[0]
    deltas = [size * (pair(3 + k, (14, 9))[1] - pair(3 + k, (14, 9))[0]) for k, size in enumerate(sizes)]
    logs = np.log([(delta**2).sum() for delta in deltas])
    unequal = np.var(logs, ddof=1) / np.mean(logs) ** 2 > 0.3
    assert unequal == (len(sizes) == 3)
    a, total, weighted = [], np.zeros((9, 9)), np.zeros((14, 9))
    for delta in deltas:
        centred = delta - delta.mean(0)
        moment = sum(np.outer(row, row) for row in centred)
        scale = np.trace(moment) if unequal else 1.0
        a.append(moment / scale)
        weighted += centred @ (a[-1] + 0.01 / scale * np.eye(9))
        total += a[-1] + 0.01 / scale * np.eye(9)
    common = sum(a).mean(0) / (np.mean([(delta**2).sum() for delta in deltas]) if unequal else 1.0)
    merged = np.linalg.solve((total + common).T, weighted.T).T
    if unequal:
        refined = merged + sum(delta @ (own - total / 3) for delta, own in zip(deltas, a, strict=True))
        u, s, vh = np.linalg.svd(refined, full_matrices=False)
        merged = merged + sum(s[:2].mean() * np.outer(u[:, k], vh[k]) for k in range(2))
    found = sculpt.apply(Ace(), base, [base + delta for delta in deltas])
    np.testing.assert_allclose(found, base + merged, rtol=1e-5, atol=1e-8)


def test_wudi_by_adam_takes_the_released_steps() -> None:
    base, *tuned = pair(4, (7, 5), 3)
    deltas = [model - base for model in tuned]
    merged, first, second = sum(deltas), np.zeros((7, 5)), np.zeros((7, 5))
    for step in range(1, 51):
        slope = sum(2 * (merged - delta) @ delta.T @ delta / (delta**2).sum() for delta in deltas)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        merged = merged - 1e-3 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    found = sculpt.apply(WudiAdam(steps=50, learning_rate=1e-3), base, tuned)
    np.testing.assert_allclose(found, base + merged, rtol=1e-6, atol=1e-9)


def test_cgm_mixes_by_fisher_information() -> None:
    base, tuned = pair(5, (3, 8))
    rng = np.random.default_rng(6)
    f, f0 = rng.random((3, 8)), rng.random((3, 8))
    f[1, 2] = f0[1, 2] = 0
    known = {"curvature": squares(f), "general": squares(f0)}
    soft, hard = base.copy(), tuned.copy()
    for i in range(3):
        for j in range(8):
            part = f[i, j] / (f[i, j] + 2 * f0[i, j]) if f[i, j] + f0[i, j] else 1 / 3
            soft[i, j] += part * (tuned[i, j] - base[i, j])
        scores = [(f[i, j] - 2 * f0[i, j]) * (tuned[i, j] - base[i, j]) ** 2 for j in range(8)]
        for j in sorted(range(8), key=scores.__getitem__)[:6]:
            hard[i, j] = base[i, j]
    np.testing.assert_allclose(sculpt.apply(Cgm(alpha=2.0), base, tuned, **known), soft, rtol=1e-6)
    found = sculpt.apply(Cgm(form="hard", alpha=2.0, reverted=0.75), base, tuned, **known)
    np.testing.assert_array_equal(found, hard)


def test_fisher_averaging_takes_the_information_of_each_parameter() -> None:
    base, *tuned = pair(14, (3, 8), 2)
    f = np.random.default_rng(15).random((2, 3, 8))
    found = sculpt.apply(RIVALS["fisher-by-gradients"](), base, tuned, curvature=[squares(one) for one in f])
    expected = (f[0] * tuned[0] + f[1] * tuned[1]) / (f[0] + f[1])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_hard_null_space_changes_no_output_where_general_inputs_go() -> None:
    base, tuned = pair(7, (5, 12))
    rng = np.random.default_rng(8)
    x = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 12))  # in three directions alone
    known = Curvature(terms=((x * x).sum(0)[None],), num_tokens=50, gram=x.T @ x)
    found = sculpt.apply(NullSpace(strength=1 - 1e-9), base, tuned, general=known)
    np.testing.assert_allclose(x @ found.T, x @ base.T, atol=1e-9)
    across = np.linalg.qr(x.T, mode="complete")[0][:, 3:]  # and loses nothing elsewhere
    np.testing.assert_allclose(found @ across, tuned @ across, atol=1e-9)


def test_aim_is_the_released_relaxation() -> None:
    base = llama(0)
    tuned, given = tuned_of(base, 1), samples(9)
    states = [{name: p.detach().numpy() for name, p in model.named_parameters()} for model in (base, tuned)]
    known = {name: squares(mean.numpy()) for name, mean in measure.magnitudes(base, given).items()}
    found = sculpt.apply(Aim(omega=0.3), states[0], [states[1]], general=known)
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, module in base.named_modules():
        if hasattr(module, "weight") and "embed" not in name:
            module.register_forward_hook(lambda _m, x, _y, own=name: inputs.setdefault(own, []).append(x[0]))
    for one in given:
        base(**one.inputs)
    for name, rows in inputs.items():
        importance = torch.cat([row.reshape(-1, row.shape[-1]) for row in rows]).abs().mean(0)
        stored = "model.embed_tokens.weight" if name == "lm_head" else f"{name}.weight"
        delta = torch.from_numpy(states[1][stored] - states[0][stored])
        expected = states[0][stored] + (delta * (1 - importance / importance.max() * 0.7)).detach().numpy()
        np.testing.assert_allclose(found[stored], expected, rtol=1e-4, atol=1e-6)


def test_fisher_information_is_the_mean_of_each_samples_squared_gradient(tmp_path: Path) -> None:
    model, given = llama(2), samples(10)
    found = measure.fisher(model, given)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for one in given:
        logits = model(**one.inputs).logits[0, 2:-1]
        loss = torch.nn.functional.cross_entropy(logits, one.tokens[0, 3:])
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        for name, slope in zip(expected, slopes, strict=True):
            expected[name] += slope**2 / 3
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-9)


def test_inputs_are_weighted_by_the_gradient_at_their_own_output() -> None:
    model, given = llama(3), samples(11)
    found = measure.gradients(deepcopy(model), given)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append((inputs[0], output))

    model.model.layers[0].mlp.up_proj.register_forward_hook(keep)
    expected = torch.zeros(16, 16)
    for one in given:
        logits = model(**one.inputs).logits[0, 2:-1]
        torch.nn.functional.cross_entropy(logits, one.tokens[0, 3:]).backward()
        x, output = seen.pop()
        assert output.grad is not None
        for t in range(x.shape[1]):
            expected += output.grad[0, t].norm() ** 2 * torch.outer(x[0, t], x[0, t]).detach()
    torch.testing.assert_close(found["model.layers.0.mlp.up_proj.weight"].float(), expected, rtol=1e-4, atol=1e-9)


def test_regmean_plus_plus_averages_behind_the_merged_layers() -> None:
    base = llama(4)
    models, given = [tuned_of(base, 5), tuned_of(base, 6)], [[s.tokens for s in samples(k, 6)] for k in (12, 13)]
    fused = deepcopy(base)
    sequential.fuse(
        base,
        models,
        fused,
        targets=given,
        general=[],
        combine=sequential.regmean(1.0),
        averages_embeddings=True,
    )
    mean = torch.stack([model.model.embed_tokens.weight for model in models]).mean(0).detach()
    expected = deepcopy(base)
    expected.model.embed_tokens.weight.data = mean
    for k in range(2):  # a whole forward each: its first layers are merged, its k-th the candidate's own
        caught = [inputs_of(expected, model, k, rows) for model, rows in zip(models, given, strict=True)]
        for name, module in expected.model.layers[k].named_modules():
            others = [model.model.layers[k].get_submodule(name) for model in models]
            if isinstance(module, torch.nn.Linear):
                x = torch.cat([one[name] for one in caught])
                y = torch.cat([one[name] @ own.weight.T for one, own in zip(caught, others, strict=True)])
                module.weight.data = torch.linalg.lstsq(x.double(), y.double()).solution.T.float().detach()
            elif hasattr(module, "weight"):
                module.weight.data = torch.stack([own.weight for own in others]).mean(0).detach()
        for name, own in fused.model.layers[k].named_parameters():
            torch.testing.assert_close(own, expected.model.layers[k].get_parameter(name), rtol=1e-3, atol=2e-4)


def inputs_of(merged: Any, candidate: Any, k: int, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what the linear layers of a candidate's k-th layer see in place of the merged model's."""
    hybrid = deepcopy(merged)
    hybrid.model.layers[k] = deepcopy(candidate.model.layers[k])
    caught: dict[str, list[torch.Tensor]] = {}
    for name, module in hybrid.model.layers[k].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _m, x, own=name: caught.setdefault(own, []).append(x[0][0]))
    with torch.no_grad():
        for row in rows:
            hybrid(row)
    return {name: torch.cat(found) for name, found in caught.items()}
