"""Several recipes in one file: those that others use come first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import MethodError
from .recipe import ModelEntry, ModelName, Recipe, Slice


def in_order(recipes: Sequence[Recipe], output: Path, parts: Path) -> Iterator[tuple[Recipe, Path]]:
    """Yield each recipe with its output; models that are another recipe's name become the path of its output.

    The one without a name, or the only one, goes to `output`; the others to a folder of their name in `parts`.

    Raises:
        MethodError: Recipes use each other in a circle.
    """
    if len(recipes) == 1:
        yield recipes[0], output
        return
    targets: dict[str | None, Path] = {recipe.name: parts / recipe.name for recipe in recipes if recipe.name}
    waiting = list(recipes)
    done: set[str | None] = set()
    while waiting:
        ready = next((recipe for recipe in waiting if _uses(recipe, targets) <= done), None)
        if ready is None:
            names = ", ".join(f"`{recipe.name or 'the last'}`" for recipe in waiting)
            raise MethodError(f"recipes use each other in a circle: {names}")
        waiting.remove(ready)
        done.add(ready.name)
        yield _with_paths(ready, targets), targets.get(ready.name, output)


def _uses(recipe: Recipe, targets: Mapping[str | None, Path]) -> set[str | None]:
    return {model.path for model in recipe.named_models() if model.path in targets}


def _with_paths(recipe: Recipe, targets: Mapping[str | None, Path]) -> Recipe:
    def name(model: ModelName) -> ModelName:
        return replace(model, path=str(targets[model.path])) if model.path in targets else model

    def source(found: ModelEntry) -> ModelEntry:
        return replace(found, model=name(found.model))

    def piece(found: Slice) -> Slice:
        return replace(found, base=found.base and name(found.base), sources=tuple(map(source, found.sources)))

    vocabulary = recipe.vocabulary
    if vocabulary is not None and isinstance(vocabulary.source, ModelName):
        vocabulary = replace(vocabulary, source=name(vocabulary.source))
    return replace(
        recipe,
        base=recipe.base and name(recipe.base),
        models=tuple(map(source, recipe.models)),
        slices=tuple(map(piece, recipe.slices)),
        vocabulary=vocabulary,
    )
