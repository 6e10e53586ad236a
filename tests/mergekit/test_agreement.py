"""sculpt reads mergekit's recipes and makes of them what mergekit 0.1.5 makes, elementwise in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sculpt.fusion.fuse import execute
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipes

from .tiny import run_mergekit, tensors_of, with_paths

A, B, C = ({"model": name} for name in "abc")


def of(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    """Return model entries whose k-th has the k-th value of each parameter."""
    return [
        {"model": name, "parameters": {key: values[k] for key, values in parameters.items()}}
        for k, name in enumerate(names)
    ]


# Every method that is not random, and of the random ones what is not (density 1).
RECIPES: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"base_model": "base", "models": of("a", "b", weight=[0.7, -0.2]), "parameters": {"lambda": 0.9}},
    "task_arithmetic normalize": {"base_model": "base", "models": of("a", "b", weight=[0.7, 0.2]), "parameters": {"normalize": True}},
    "linear": {"models": of("base", "a", "b", weight=[2, 1, 0.5])},
    "linear unnormalized": {"models": of("a", "b", weight=[0.3, 0.9]), "parameters": {"normalize": False}},
    "ties": {"base_model": "base", "models": of("a", "b", "c", weight=[1, 0.7, 0.4], density=[0.5, 0.3, 0.2])},
    "ties unnormalized": {"base_model": "base", "models": of("a", "b", weight=[1, 0.7], density=[0.5, 0.3]), "parameters": {"normalize": False, "lambda": 1.2}},
    "dare_linear": {"base_model": "base", "models": of("a", "b", weight=[1, 0.5]), "parameters": {"rescale": False}},
    "dare_ties": {"base_model": "base", "models": of("a", "b", weight=[1, 0.5]), "parameters": {"rescale": False}},
    "breadcrumbs": {"base_model": "base", "models": of("a", "b", weight=[1, 0.5], density=[0.5, 0.9], gamma=[0.05, 0.2])},
    "breadcrumbs rescale": {"base_model": "base", "models": of("a", "b", weight=[1, 0.5], density=[0.5, 0.9]), "parameters": {"rescale": True}},
    "breadcrumbs_ties": {"base_model": "base", "models": of("a", "b", "c", weight=[1, 0.5, 0.7], density=[0.5, 0.4, 0.9]), "parameters": {"gamma": 0.03}},
    "della": {"base_model": "base", "models": of("a", "b", weight=[1, 0.5]), "parameters": {"density": 1.0, "rescale": False}},
    "della_linear": {"base_model": "base", "models": of("a", "b", weight=[1, 0.5]), "parameters": {"density": 1.0, "rescale": False}},
    "sce": {"base_model": "base", "models": [A, B, C], "parameters": {"select_topk": 0.3}},
    "sce all": {"base_model": "base", "models": [A, B]},
    "slerp": {"base_model": "base", "models": [{"model": "base"}, A], "parameters": {"t": [{"filter": "mlp", "value": [0, 0.3, 1]}, {"filter": "self_attn", "value": [1, 0.5, 0]}, {"value": 0.4}]}},
    "nuslerp": {"models": of("a", "b", weight=[1, 3])},
    "nuslerp base": {"base_model": "base", "models": of("a", "b", weight=[1, 3])},
    "nuslerp rows": {"base_model": "base", "models": of("a", "b", weight=[1, 3]), "parameters": {"nuslerp_flatten": False}},
    "nuslerp columns": {"models": of("a", "b", weight=[2, 1]), "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}},
    "multislerp": {"base_model": "base", "models": of("a", "b", "c", weight=[1, 0.5, 0.2])},
    "multislerp zero": {"models": of("a", "b", "c", weight=[1, 0.5, 0.2])},
    "karcher": {"models": [A, B, C]},
    "model_stock": {"base_model": "base", "models": [A, B, C]},
    "model_stock rows": {"base_model": "base", "models": [A, B], "parameters": {"filter_wise": True}},
    "nearswap": {"base_model": "base", "models": [A], "parameters": {"t": 0.05}},
    "arcee_fusion": {"base_model": "base", "models": [A]},
    "passthrough stack": {"slices": [
        {"sources": [{"model": "a", "layer_range": [0, 3]}]},
        {"sources": [{"model": "b", "layer_range": [1, 4], "parameters": {"scale": [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]}}]},
    ]},
    "slerp slices": {"base_model": "base", "slices": [
        {"sources": [{"model": "base", "layer_range": [0, 2]}, {"model": "a", "layer_range": [2, 4]}]},
        {"sources": [{"model": "base", "layer_range": [2, 4]}, {"model": "b", "layer_range": [0, 2]}]},
    ], "parameters": {"t": [0.2, 0.8]}},
    "ties gradient": {"base_model": "base", "models": [
        {"model": "a", "parameters": {"weight": [0.1, 0.9, 0.2], "density": [1, 0.2]}},
        {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 0.5}, {"value": [1, 0]}], "density": 0.5}},
    ]},
}  # fmt: skip
# Elements that may fall on the other side of a cut, of the 65,000 of a model: variances and importances that
# float32 rounds apart.
STRAYS = {"sce": 3, "arcee_fusion": 3}


def document(name: str, folder: Path) -> dict[str, Any]:
    return {"merge_method": name.split()[0], "dtype": "float32", **with_paths(RECIPES[name], folder)}


@pytest.fixture(scope="session")
def theirs(python: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    recipes = {name: document(name, models) for name in RECIPES}
    return run_mergekit(python, recipes, tmp_path_factory.mktemp("mergekit"))


def merge(recipe: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors that sculpt makes of a recipe."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    prepared = prepare_recipe(read_recipes(file)[0], output=folder / "out", near=folder)
    execute(prepared)
    return tensors_of(folder / "out")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_what_mergekit_gives(name: str, theirs: dict[str, Path], models: Path, tmp_path: Path) -> None:
    ours, expected = merge(document(name, models), tmp_path), tensors_of(theirs[name])
    assert ours.keys() == expected.keys()
    strays = 0
    for tensor in expected:
        assert ours[tensor].shape == expected[tensor].shape
        near = np.isclose(ours[tensor], expected[tensor], rtol=2e-5, atol=2e-6)
        strays += int((~near).sum())
        if name.split()[0] not in STRAYS:
            np.testing.assert_allclose(ours[tensor], expected[tensor], rtol=2e-5, atol=2e-6, err_msg=tensor)
    assert strays <= STRAYS.get(name.split()[0], 0)
