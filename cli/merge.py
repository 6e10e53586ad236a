"""`sculpt merge`: run a recipe, in our own schema or in mergekit's."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..fusion.arithmetic.two_sided import Protection
from ..fusion.plan.options import Policies, Selection
from ..fusion.run.calibration import Calibration
from ..fusion.run.settings import Settings
from .flags import given_flags, with_options
from .options import CALIBRATION, POLICIES, PROTECTION, SELECTION, SETTINGS, AsJson, protection_of

if TYPE_CHECKING:
    from ..fusion.recipe.recipe import Recipe

RecipeName = Annotated[str, typer.Argument(help="A YAML file, or a recipe that ships with sculpt by name.")]
OutputPath = Annotated[Path, typer.Option("--output", "-o", help="Output folder.")]
BaseOption = Annotated[Path | None, typer.Option("--base", help="The base, for a recipe that names none.")]
TunedOption = Annotated[
    list[Path] | None, typer.Option("--tuned", help="A fine-tune, for a recipe that names none; may be repeated.")
]
PrintPlan = Annotated[
    bool, typer.Option("--print-plan", help="Print the plan, what memory and time it takes, and stop.")
]
Parts = Annotated[
    Path | None,
    typer.Option("--parts", help="Folder of the named recipes that others use. Default: OUTPUT-parts."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")]


@with_options(
    calibration=CALIBRATION,
    protection=PROTECTION,
    selection=SELECTION,
    policies=POLICIES,
    settings=SETTINGS,
)
def merge_command(
    ctx: typer.Context,
    recipe: RecipeName,
    output: OutputPath,
    base: BaseOption = None,
    tuned: TunedOption = None,
    print_plan: PrintPlan = False,
    parts: Parts = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    *,
    calibration: Calibration,
    protection: Protection,
    selection: Selection,
    policies: Policies,
    settings: Settings,
) -> None:
    """Merge models by a recipe: sculpt's own YAML, or mergekit's as it is.

    Of several recipes in a file those with a `name` go to the parts' folder, where the others find them by that name.

    **Examples**

        sculpt merge recipe.yaml -o merged/ --print-plan

        sculpt merge mergekit-config.yml -o merged/

        sculpt merge adadare --base base/ --tuned sft/ -o fused/
    """
    from ..fusion.checkpoint.output.steps import steps_of
    from ..fusion.recipe.prepare import prepare_recipe
    from ..fusion.recipe.read import find_recipe, read_recipes
    from ..fusion.recipe.several import in_order
    from .console import say
    from .fuse import run_prepared
    from .recipes import merged_calibration, merged_settings, with_protected_defaults

    file, given = find_recipe(recipe), given_flags(ctx)
    folder = parts or output.with_name(output.name + "-parts")
    flags = replace(settings, selection=selection, policies=policies)
    recipes = read_recipes(file)
    several = len(recipes) > 1 and not print_plan
    with steps_of(output, made_by="merge") if several else nullcontext() as steps:
        for one, target in in_order(recipes, output, folder):
            found = _between(one, base, tuned)
            if print_plan and any(
                Path(name.path).parent == folder and not Path(name.path).exists() for name in found.named_models()
            ):
                say(f"`{target}` is planned once the recipes that it uses have run")
                continue
            measured = merged_calibration(found, calibration, given)
            protected = protection_of(protection, measured, given, found.run.protection)
            run_prepared(
                prepare_recipe(
                    with_protected_defaults(found, protected),
                    output=target,
                    near=file.parent,
                    settings=replace(merged_settings(found, flags, given), protection=protected),
                    overwrite=overwrite or print_plan or (steps is not None and steps.has_appeared(target)),
                ),
                measured,
                dry_run=print_plan,
                overwrite=overwrite,
                json=json,
                given=given,
                steps=steps,
            )


def _between(recipe: Recipe, base: Path | None, tuned: list[Path] | None) -> Recipe:
    """Return the recipe with the models of the command line in place of those that it leaves open."""
    from ..fusion.errors import MethodError

    if base is None and not tuned:
        if not recipe.models and not recipe.slices:
            raise MethodError("the recipe names no models", hint="`--base` and `--tuned` name them")
        return recipe
    if base is None or not tuned:
        raise MethodError("`--base` and `--tuned` are given together")
    return recipe.between(base, tuned)


def register(app: typer.Typer) -> None:
    """Add `merge`."""
    app.command("merge")(merge_command)
