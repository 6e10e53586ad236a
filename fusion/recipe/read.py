"""Recipe files: either schema, one document or several, and those that ship with the package by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ..errors import MethodError, RecipeError, did_you_mean
from ..ref import is_there
from .document import read_documents
from .mergekit import is_mergekit, read_mergekit
from .recipe import Recipe
from .schema import read_own


def read_recipes(file: Path) -> list[Recipe]:
    """Return the recipes of a file, in its order.

    Raises:
        RecipeError: One is malformed, or asks for what sculpt does not do.
    """
    documents = read_documents(file)
    recipes = [read_mergekit(document) if is_mergekit(document) else read_own(document) for document in documents]
    names = [recipe.name for recipe in recipes]
    if len(recipes) > 1:
        for document, name in zip(documents, names, strict=True):
            if names.count(name) > 1:
                given = f"two recipes are called `{name}`" if name else "of several recipes all but one need a `name`"
                raise document.error(("name",), given)
    return recipes


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that ship with the package, by name."""
    folder = Path(str(resources.files("sculpt.configs")))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return a recipe's file: a path, or a recipe that ships with the package by its name.

    Raises:
        MethodError: It is neither.
    """
    path = Path(name)
    if is_there(path) and path.is_file():
        return path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise MethodError(f"no recipe is called `{name}`", hint=did_you_mean(name, shipped))


def read_recipe(name: str) -> Recipe:
    """Return the one recipe of a file or of a name.

    Raises:
        RecipeError: It is malformed, or the file holds several.
    """
    file = find_recipe(name)
    recipes = read_recipes(file)
    if len(recipes) != 1:
        raise RecipeError(file, None, f"one recipe is expected, and the file holds {len(recipes)}")
    return recipes[0]
