"""Recipes on the commands of methods: `--config NAME`, which flags override."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..fusion.errors import MethodError
from .flags import flag_of
from .options import CALIBRATION, POLICIES, SELECTION, SETTINGS, Target, protection_of

if TYPE_CHECKING:
    from ..fusion.arithmetic.two_sided import Protection
    from ..fusion.methods import Method
    from ..fusion.recipe.recipe import Recipe
    from ..fusion.run.calibration import Calibration
    from ..fusion.run.fuse import Prepared
    from ..fusion.run.settings import Settings

SOURCES = ("hessian", "data", "enabled")  # fields of a calibration that exclude one another


def merged_settings(recipe: Recipe, flags: Settings, given: Collection[str]) -> Settings:
    """Return a recipe's settings with those that were given as flags, and what only flags can say."""
    run = recipe.run
    return replace(
        run,
        # No recipe can say the last five.
        **SETTINGS.chosen(flags, {*given, "device", "threads", "digest", "memory", "load_check"}),
        selection=replace(run.selection, **SELECTION.chosen(flags.selection, given)),
        policies=replace(run.policies, **POLICIES.chosen(flags.policies, given)),
    )


def merged_calibration(recipe: Recipe, flags: Calibration, given: Collection[str]) -> Calibration:
    """Return where the curvature comes from: what the recipe says, with the flags that were given over it."""
    chosen = CALIBRATION.chosen(flags, given)
    replaced = SOURCES if set(SOURCES) & set(chosen) else ()
    said = {name: value for name, value in recipe.calibration.items() if name not in replaced}
    return replace(flags, **{**said, **chosen})


def with_protected_defaults(recipe: Recipe, protection: Protection | None) -> Recipe:
    """Return the recipe with what AdaDARE-γ does by default where the base is protected: as the command does."""
    from ..api import ADADARE_PROTECTED
    from ..fusion.methods import AdaDare

    if protection is None or recipe.method is not AdaDare:
        return recipe
    return replace(recipe, defaults={**ADADARE_PROTECTED, **recipe.defaults})


def prepare_named(
    config: str,
    base: Path,
    tuned: Sequence[Path],
    method: Method,
    flags: Settings,
    target: Target,
    calibration: Calibration,
    protection: Protection,
    given: Collection[str],
) -> tuple[Prepared, Calibration]:
    """Return the fuse of these models by a recipe, and where its curvature comes from.

    Raises:
        MethodError: The recipe is for another command, or a flag is no option of its method.
    """
    from ..api import default_output, made_by
    from ..fusion.methods import AdaDare
    from ..fusion.recipe.prepare import prepare_recipe
    from ..fusion.recipe.read import find_recipe, read_recipe

    recipe = read_recipe(config)
    options = {field.name for field in fields(method)} & set(given)
    if recipe.method is not type(method):
        if not isinstance(method, AdaDare):
            raise MethodError(
                f"`{config}` is a recipe for {recipe.method.name}, not for {method.name}",
                hint=f"`sculpt {recipe.method.name} … --config {config}`",
            )
        unknown = sorted(options - {field.name for field in fields(recipe.method)})
        if unknown:
            raise MethodError(f"`{flag_of(unknown[0])}` is no option of {recipe.method.title}")
    recipe = recipe.between(base, tuned)
    recipe = replace(recipe, overrides={name: getattr(method, name) for name in options})
    calibration = merged_calibration(recipe, calibration, given)
    protected = protection_of(protection, calibration, given, recipe.run.protection)
    prepared = prepare_recipe(
        with_protected_defaults(recipe, protected),
        output=target.output or default_output(tuned, made_by(recipe.method, protects=protected is not None)),
        near=find_recipe(config).parent,
        settings=replace(merged_settings(recipe, flags, given), protection=protected),
        overwrite=target.may_exist,
    )
    return prepared, calibration
