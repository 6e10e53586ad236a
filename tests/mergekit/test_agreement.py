"""sculpt reads mergekit's recipes and makes of them what mergekit 0.1.5 makes, elementwise in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sculpt.fusion.recipe.prepare import prepare_recipe
from sculpt.fusion.recipe.read import read_recipes
from sculpt.fusion.run.fuse import execute

from .tiny import run_mergekit, tensors_of, with_paths

# Every method that is not random, and of the random ones what is not (density 1).
RECIPES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("recipes.yaml").read_text())
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
