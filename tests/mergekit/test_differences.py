"""Where sculpt and mergekit 0.1.5 differ on purpose; and the random methods, with mergekit's masks in place of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sculpt.fusion.arithmetic.tile import Tile

from .test_agreement import merge
from .tiny import run_mergekit, tensors_of, with_paths

ONE = [{"model": "a", "parameters": {"weight": 1.0, "density": 0.5}}]
TWO = [{"model": "a"}, {"model": "b"}]
RANDOM: dict[str, dict[str, Any]] = {
    f"{method} {rescale}": {"base_model": "base", "models": ONE, "parameters": {"rescale": rescale == "l1"}}
    for method in ("dare_linear", "dare_ties", "della", "della_linear")
    for rescale in ("l1", "none")
}
RECIPES: dict[str, dict[str, Any]] = RANDOM | {
    "task_arithmetic bfloat16": {"base_model": "base", "models": [ONE[0]], "dtype": "bfloat16"},
    "sce near": {"base_model": "base", "models": [{"model": "near1"}, {"model": "near2"}]},
}


@pytest.fixture(scope="session")
def more_models(models: Path) -> Path:
    """Return the models, and two that are near the base."""
    from .tiny import llama, write

    for name, size in (("near1", 1e-5), ("near2", 2e-5)):
        rng = np.random.default_rng(len(name))
        near = {n: t + (rng.standard_normal(t.shape) * size).astype(np.float32) for n, t in llama(0).items()}
        write(models / name, near)
    return models


def document(name: str, folder: Path) -> dict[str, Any]:
    return {"merge_method": name.split()[0], "dtype": "float32", **with_paths(RECIPES[name], folder)}


@pytest.fixture(scope="session")
def theirs(python: Path, more_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    recipes = {name: document(name, more_models) for name in RECIPES}
    return run_mergekit(python, recipes, tmp_path_factory.mktemp("mergekit"))


@pytest.mark.parametrize("name", RANDOM)
def test_with_mergekits_masks_the_random_methods_agree(
    name: str, theirs: dict[str, Path], more_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, base = tensors_of(theirs[name]), tensors_of(more_models / "base")
    masks = {base[n].tobytes(): (expected[n] != base[n]).reshape(-1) for n in base}

    def draw(tile: Tile, keep: object, model: int = 0) -> np.ndarray:
        return masks[np.ascontiguousarray(tile.base).tobytes()]

    monkeypatch.setattr(Tile, "draw", draw)
    recipe = document(name, more_models)
    if name.endswith("l1"):
        recipe["parameters"]["rescale"] = "l1"
    ours = merge(recipe, tmp_path)
    for tensor in expected:
        np.testing.assert_allclose(ours[tensor], expected[tensor], rtol=2e-5, atol=2e-6, err_msg=tensor)


def test_survivors_are_divided_by_the_keep_probability_not_scaled_to_the_old_l1_norm(
    theirs: dict[str, Path], more_models: Path, tmp_path: Path
) -> None:
    base, tuned = tensors_of(more_models / "base"), tensors_of(more_models / "a")
    merged = merge(document("dare_linear l1", more_models), tmp_path)
    peers = tensors_of(theirs["dare_linear l1"])
    name = "model.norm.weight"  # 32 elements
    delta = tuned[name].astype(np.float64) - base[name]
    for found, factor in ((merged, 2.0), (peers, None)):
        kept = found[name] != base[name]
        ratios = (found[name].astype(np.float64) - base[name])[kept] / delta[kept]
        l1 = np.abs(delta).sum() / np.abs(delta[kept]).sum()
        np.testing.assert_allclose(ratios, l1 if factor is None else factor, rtol=1e-3)
        assert abs(l1 - 2) > 0.02


def test_in_bfloat16_our_delta_of_weight_one_gives_the_fine_tune_and_mergekits_misses_it(
    theirs: dict[str, Path], more_models: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    tuned = {n: t.astype(ml_dtypes.bfloat16) for n, t in tensors_of(more_models / "a").items()}
    (tmp_path / "ours").mkdir()
    merged = merge({**document("task_arithmetic bfloat16", more_models)}, tmp_path / "ours")
    peers = {
        name: tensor.float().numpy()
        for file in theirs["task_arithmetic bfloat16"].glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    wrong = sum(int((peers[n] != tuned[n].astype(np.float32)).sum()) for n in tuned)
    assert all((merged[n] == tuned[n]).all() for n in tuned)
    assert wrong > 0.001 * sum(t.size for t in tuned.values())


def test_sce_weighs_near_models_by_their_change_and_mergekit_weighs_them_alike(
    theirs: dict[str, Path], more_models: Path, tmp_path: Path
) -> None:
    merged, peers = merge(document("sce near", more_models), tmp_path), tensors_of(theirs["sce near"])
    base, one, two = (
        tensors_of(more_models / m)["lm_head.weight"].astype(np.float64) for m in ("base", "near1", "near2")
    )
    agree = (one - base) * (two - base) > 0
    for found, weights in ((merged, None), (peers, (0.5, 0.5))):
        if weights is None:
            squares = np.array([((m - base) ** 2).sum() for m in (one, two)])
            weights = squares / squares.sum()
        expected = weights[0] * (one - base) + weights[1] * (two - base)
        delta = found["lm_head.weight"].astype(np.float64) - base
        assert np.median(np.abs(delta[agree] - expected[agree])) < 1e-7
