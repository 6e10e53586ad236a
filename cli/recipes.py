"""Recipes on the commands of methods: `--config NAME`, which flags override."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..fusion.errors import MethodError
from .options import CalibrationOptions, OutputOptions, ProtectOptions

if TYPE_CHECKING:
    from ..fusion.methods import Method
    from ..fusion.recipe.recipe import Recipe
    from ..fusion.run.fuse import Prepared, Settings

# Fields of `Settings` by the flag that sets them.
SETTING_FLAGS = {"max_shard_size": "max_shard_bytes"}
SELECTION_FLAGS = ("include", "exclude", "rest")
POLICY_FLAGS = ("on_missing", "on_extra", "on_mismatch", "on_dtype", "on_nonfinite")


def merged_settings(recipe: Recipe, flags: Settings, given: Collection[str]) -> Settings:
    """Return a recipe's settings with those that were given as flags, and what only flags can say."""
    run = recipe.run
    names = {SETTING_FLAGS.get(name, name) for name in given}
    names |= {"device", "threads", "digest"}  # no recipe can say these
    chosen = {field.name: getattr(flags, field.name) for field in fields(flags) if field.name in names}
    selection = {name: getattr(flags.selection, name) for name in SELECTION_FLAGS if name in given}
    policies = {name: getattr(flags.policies, name) for name in POLICY_FLAGS if name in given}
    return replace(
        run,
        **chosen,
        selection=replace(run.selection, **selection),
        policies=replace(run.policies, **policies),
    )


def merged_calibration(recipe: Recipe, curvature: CalibrationOptions) -> CalibrationOptions:
    """Return where the curvature comes from: what the flags say, or else the recipe."""
    if curvature.hessian or curvature.data or curvature.no_calibration:
        return curvature
    return replace(curvature, hessian=recipe.hessian, data=recipe.data)


def prepare_named(
    config: str,
    base: Path,
    tuned: Sequence[Path],
    method: Method,
    flags: Settings,
    output: OutputOptions,
    measure: CalibrationOptions,
    protect: ProtectOptions,
    given: Collection[str],
) -> tuple[Prepared, CalibrationOptions, ProtectOptions]:
    """Return the fuse of these models by a recipe, and where the curvature of both sides comes from.

    Raises:
        MethodError: The recipe is for another command, or a flag is no option of its method.
    """
    from ..api import default_output
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
            raise MethodError(f"`--{unknown[0].replace('_', '-')}` is no option of {recipe.method.title}")
    recipe = recipe.between(base, tuned)
    recipe = replace(recipe, overrides={name: getattr(method, name) for name in options})
    prepared = prepare_recipe(
        recipe,
        output=output.output or default_output(tuned[0]),
        near=find_recipe(config).parent,
        settings=replace(
            merged_settings(recipe, flags, given), protection=protect.protection(recipe.run.protection, given)
        ),
        overwrite=output.overwrite,
    )
    return prepared, merged_calibration(recipe, measure), replace(protect, protect=protect.protect or recipe.protect)
