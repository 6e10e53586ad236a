"""`sculpt merge`: run a recipe, in our own schema or in mergekit's."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..fusion.arithmetic.two_sided import Protection
from ..fusion.plan.options import Policies, Selection
from ..fusion.run.calibration import Calibration
from ..fusion.run.settings import Settings
from .flags import given_flags, with_options
from .options import CALIBRATION, POLICIES, PROTECTION, SELECTION, SETTINGS, AsJson

RecipeName = Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships with sculpt.")]
OutputPath = Annotated[Path, typer.Option("--output", "-o", help="Output folder.")]
BaseOption = Annotated[Path | None, typer.Option("--base", help="The base, if the recipe names none.")]
TunedOption = Annotated[
    list[Path] | None, typer.Option("--tuned", help="A fine-tune, if the recipe names none; may be repeated.")
]
PrintPlan = Annotated[bool, typer.Option("--print-plan", help="Print the plan, with memory and time, and stop.")]
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
    """Merge models by a recipe: sculpt's own YAML, or mergekit's unchanged.

    A file may hold several recipes. Those with a `name` are written to the folder of parts, and the others can use them
    by that name.

    **Examples**

        sculpt merge recipe.yaml -o merged/ --print-plan

        sculpt merge mergekit-config.yml -o merged/

        sculpt merge adadare --base base/ --tuned sft/ -o fused/
    """
    from ..api import plan_recipes
    from ..fusion.checkpoint.output.steps import steps_of
    from ..fusion.recipe.read import find_recipe, read_recipes
    from .console import say
    from .fuse import run_prepared
    from .options import refuse_idle_protection
    from .recipes import over_of

    given = given_flags(ctx)
    several = not print_plan and len(read_recipes(find_recipe(recipe))) > 1
    with steps_of(output, made_by="merge") if several else nullcontext() as steps:
        planned = plan_recipes(
            recipe,
            output=output,
            over=over_of(given, calibration, protection, replace(settings, selection=selection, policies=policies)),
            base=base,
            tuned=tuned or (),
            parts=parts,
            may_exist=lambda target: overwrite or print_plan or (steps is not None and steps.has_appeared(target)),
            dry_run=print_plan,
        )
        for one in planned:
            if one.prepared is None:
                say(f"`{one.output}` can be planned only after the recipes that it uses have run")
                continue
            if one.prepared.settings.protection is None:
                refuse_idle_protection(given)
            run_prepared(
                one.prepared,
                one.calibration,
                dry_run=print_plan,
                overwrite=overwrite,
                json=json,
                given=given,
                steps=steps,
            )


def register(app: typer.Typer) -> None:
    """Add `merge`."""
    app.command("merge")(merge_command)
