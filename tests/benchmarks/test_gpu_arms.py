"""The arms of the campaign on one GPU, on stacks of layers, against the methods of sculpt that they stand for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sculpt
import torch
from sculpt.benchmarks.forgetting.gpu import campaign, tiny
from sculpt.benchmarks.forgetting.gpu.methods import MERGED, SINGLE, Known, curvature
from sculpt.benchmarks.forgetting.rivals import Ace, Aim, Cgm, DgHard
from sculpt.fusion.arithmetic.curvature import Curvature

KIND, LAYERS, ROWS, WIDTH, TOKENS = "self_attn.q_proj", 2, 70, 30, 400
RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((LAYERS, ROWS, WIDTH)).astype(np.float32)
TUNED = [BASE + np.float32(size) * RNG.standard_normal(BASE.shape).astype(np.float32) for size in (0.2, 0.3)]
GENERAL, CHATS, *INPUTS = (
    RNG.standard_normal((LAYERS, TOKENS, WIDTH)) @ RNG.standard_normal((LAYERS, WIDTH, WIDTH)) for _ in range(4)
)
SQUARES = [RNG.random(BASE.shape).astype(np.float32) for _ in range(3)]  # E[g²] of both and of the base
DATA, DELTA, IDENTITY = "data", "delta", "identity"


def known(count: int) -> Known:
    def measure(what: str, k: int) -> Any:
        if what in ("target", "general", "chats"):
            x = torch.tensor({"target": INPUTS[k], "general": GENERAL, "chats": CHATS}[what])
            return {KIND: (x.mT @ x / TOKENS).float()}
        if what == "magnitudes":
            return {KIND: torch.tensor(np.abs(GENERAL).mean(1)).float()}
        return {KIND: torch.tensor(SQUARES[2 if what == "general fisher" else k])}

    deltas = [{KIND: torch.tensor(tuned - BASE)} for tuned in TUNED[:count]]
    return Known({KIND: torch.tensor(BASE)}, deltas, measure)


def moments(x: np.ndarray) -> Curvature:
    return Curvature(terms=((x * x).sum(0)[None],), num_tokens=len(x), gram=x.T @ x)


def means(values: np.ndarray) -> Curvature:
    return Curvature(terms=(values,), num_tokens=1)


def by_sculpt(
    method: Any, count: int, layer: int, form: str | None = None, weight: float = 1.0, chats: float = 0.0
) -> np.ndarray:
    target: Any = "auto" if form in (None, DATA) else form
    protection = None if form is None else sculpt.Protection(weight=weight, target=target)
    own: Any = [moments(x[layer]) if form in (None, DATA) else None for x in INPUTS[:count]]
    both = np.concatenate([GENERAL[layer], chats**0.5 * CHATS[layer]])  # a side's weight is that of its squares
    general: Any = None if form is None else replace(moments(both), num_tokens=TOKENS)
    if isinstance(method, Cgm | sculpt.Fisher):
        own, general = [means(one[layer]) for one in SQUARES[:count]], means(SQUARES[2][layer])
    if isinstance(method, Aim):
        own, general = None, means(np.abs(GENERAL[layer]).mean(0)[None])
    tuned: Any = [one[layer] for one in TUNED[:count]]
    return sculpt.apply(
        method,
        BASE[layer],
        tuned if count > 1 else tuned[0],
        curvature=own if count > 1 or own is None else own[0],
        general=general,
        settings=sculpt.Settings(protection=protection),
    )


PLAIN = sculpt.AdaDare(gamma=1, sparsity=0)
ALONE = {
    "interpolation": (sculpt.TaskArithmetic(scale=0.6), 0.6, None),
    "ties 0.1": (sculpt.Ties(density=0.1, scale=1.4), 1.4, None),
    "dg-hard": (DgHard(threshold=0.7), 0.7, None),
    "cgm soft": (Cgm(alpha=0.1), 0.1, None),
    "cgm hard": (Cgm(form="hard", reverted=0.5), 0.5, None),
    "aim": (Aim(omega=0.4), 0.4, None),
    "two-sided": (PLAIN, 0.3, DATA),
    "two-sided, no samples": (PLAIN, 0.1, DELTA),
    "two-sided, chats:3": (PLAIN, 0.3, DATA),
    "two-sided, no samples, chats:3": (PLAIN, 0.1, DELTA),
    "null space, soft": (PLAIN, 0.03, IDENTITY),
}
TOGETHER = {
    "task arithmetic": (sculpt.TaskArithmetic(scale=0.5), 0.5, None),
    "ties 0.1": (sculpt.Ties(density=0.1, scale=1.4), 1.4, None),
    "regmean": (sculpt.RegMean(alpha=0.9), 0.9, None),
    "wudi": (sculpt.Wudi(scale=0.7), 0.7, None),
    "actmat": (sculpt.Wudi(normalize=False, scale=0.7), 0.7, None),
    "tsv-m": (sculpt.TsvM(scale=0.7), 0.7, None),
    "iso-c": (sculpt.IsoC(scale=0.7), 0.7, None),
    "ace": (Ace(scale=0.7), 0.7, None),
    "model stock": (sculpt.ModelStock(), 1.0, None),
    "fisher by gradients": (sculpt.Fisher(), 1.0, None),
    "two-sided": (PLAIN, 0.3, DATA),
    "two-sided, no samples": (PLAIN, 0.1, DELTA),
}


@pytest.mark.parametrize(("count", "name"), [*((1, name) for name in ALONE), *((2, name) for name in TOGETHER)])
def test_an_arm_on_stacks_gives_what_its_method_gives_of_each_layer(count: int, name: str) -> None:
    method, strength, form = (ALONE if count == 1 else TOGETHER)[name]
    arm = (SINGLE if count == 1 else MERGED)[name]
    found = BASE + arm.run(known(count), strength)[KIND].numpy()
    for layer in range(LAYERS):
        wanted = by_sculpt(method, count, layer, form, strength, 3 if name.endswith(":3") else 0)
        np.testing.assert_allclose(found[layer], wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_root_of_the_delta_is_that_of_its_singular_values(wide: bool, scaled: bool) -> None:
    some = known(1)
    delta = some.deltas[0][KIND][:, :20] if wide else some.deltas[0][KIND]
    some.deltas[0][KIND] = delta
    g = some.measure("general", 0)[KIND].double()
    found = curvature(some, "root, scaled" if scaled else "root", 0, KIND, slice(0, LAYERS), g).numpy()
    for layer in range(LAYERS):
        own, size = delta[layer].double().numpy(), np.diagonal(g[layer].numpy())
        if not scaled:
            own = own * np.sqrt(size / np.square(own).sum(0))
        _, values, vectors = np.linalg.svd(own, full_matrices=False)
        wanted = vectors.T * values @ vectors
        if scaled:
            root = np.sqrt(size / np.diagonal(wanted))
            wanted = root[:, None] * wanted * root
        np.testing.assert_allclose(found[layer], wanted * size.sum() / np.trace(wanted), rtol=1e-6, atol=1e-6)


def test_the_campaign_scores_a_cell_and_skips_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path)
    arguments = ["--model", "model", "--data", "campaign.json.gz", "--work", "work", "--scores", "scores.jsonl"]
    arguments += [
        "--seconds",
        "60",
        "--device",
        "cpu",
        "--steps",
        "2",
        "--only",
        "tagging plain mild 0",
        "--groups",
        "0",
    ]
    monkeypatch.chdir(tmp_path)
    arms = ("fine-tune", "two-sided, no samples, chats:3", "two-sided, both by gradients", "cgm soft", "aim")
    monkeypatch.setattr(campaign, "GROUPS", ((arms, ()),))
    monkeypatch.setattr(campaign, "SEEDS", (0,))
    for folder in ("tuned", "chosen", "claims", "done", "logs"):
        Path("work", folder).mkdir(parents=True)
    campaign.answer(argparse.Namespace(model="model", data="campaign.json.gz", work="work", device="cpu"))
    campaign.main([*arguments, "--until", "1e12"])
    lines = Path("scores.jsonl").read_text().splitlines()
    assert not any('"error"' in line for line in lines)
    assert all(f'"arm": "{name}"' in "".join(lines) for name in arms)
    campaign.main([*arguments, "--until", "1e12"])
    assert Path("scores.jsonl").read_text().splitlines() == lines
