"""Recipes on the commands of methods: `--config NAME`, which flags override."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..fusion.errors import MethodError
from .flags import flag_of
from .options import CALIBRATION, POLICIES, PROTECTION, SELECTION, SETTINGS, Target, protection_of

if TYPE_CHECKING:
    from ..fusion.arithmetic.two_sided import Protection
    from ..fusion.methods import Method
    from ..fusion.recipe.over import Over
    from ..fusion.run.calibration import Calibration
    from ..fusion.run.prepared import Prepared
    from ..fusion.run.settings import Settings


def over_of(given: Collection[str], calibration: Calibration, protection: Protection, settings: Settings) -> Over:
    """Return what flags say over a recipe: those that were given, and what no recipe can say."""
    from ..fusion.recipe.over import Over

    return Over(
        settings=SETTINGS.chosen(settings, {*given, "device", "threads", "digest", "memory", "load_check"}),
        selection=SELECTION.chosen(settings.selection, given),
        policies=POLICIES.chosen(settings.policies, given),
        protection=PROTECTION.chosen(protection, given),
        measured=CALIBRATION.chosen(calibration, given),
        calibration=calibration,
    )


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
        MethodError: The recipe is for another command, or a flag is not an option of its method.
    """
    from ..api import default_output, made_by, with_protected_defaults
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
            raise MethodError(f"`{flag_of(unknown[0])}` is not an option of {recipe.method.title}")
    recipe = recipe.between(base, tuned)
    recipe = replace(recipe, overrides={name: getattr(method, name) for name in options})
    over = over_of(given, calibration, protection, flags)
    calibration = over.calibration_of(recipe)
    protected = protection_of(protection, calibration, given, recipe.run.protection)
    prepared = prepare_recipe(
        with_protected_defaults(recipe, protected),
        output=target.output or default_output(tuned, made_by(recipe.method, protects=protected is not None)),
        near=find_recipe(config).parent,
        settings=replace(over.settings_of(recipe), protection=protected),
        overwrite=target.may_exist,
    )
    return prepared, calibration
