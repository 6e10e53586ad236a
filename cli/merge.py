"""`sculpt merge`: run a recipe, in our own schema or in mergekit's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .flags import given_flags, with_options
from .options import AsJson, SelectionOptions

if TYPE_CHECKING:
    from ..fusion.recipe.recipe import Recipe

RecipeName = Annotated[str, typer.Argument(help="A YAML file, or a recipe that ships with sculpt by name.")]
OutputPath = Annotated[Path, typer.Option("--output", "-o", help="Output folder.")]
BaseOption = Annotated[Path | None, typer.Option("--base", help="The base, for a recipe that names none.")]
TunedOption = Annotated[
    list[Path] | None, typer.Option("--tuned", help="A fine-tune, for a recipe that names none; may be repeated.")
]
PrintPlan = Annotated[bool, typer.Option("--print-plan", help="Print the plan, from headers alone, and stop.")]
Parts = Annotated[
    Path | None,
    typer.Option("--parts", help="Folder of the named recipes that others use. Default: OUTPUT-parts."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the random masks. Default: the recipe's, or 0.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="Float dtype to store. Default: the recipe's.")]
ShardSize = Annotated[str | None, typer.Option("--max-shard-size", help="Largest output file, such as 5GB.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads. Default: all cores.")]
Hessian = Annotated[Path | None, typer.Option("--hessian", help="Statistics that `sculpt calibrate` wrote.")]
Data = Annotated[Path | None, typer.Option("--data", help="Calibrate on these samples of the target task first.")]
NoCalibration = Annotated[bool, typer.Option("--no-calibration", help="Use H = I: all directions alike.")]


@with_options(selection=(SelectionOptions, "Selection and disagreements, over what the recipe says"))
def merge_command(
    ctx: typer.Context,
    recipe: RecipeName,
    output: OutputPath,
    base: BaseOption = None,
    tuned: TunedOption = None,
    print_plan: PrintPlan = False,
    parts: Parts = None,
    overwrite: Overwrite = False,
    seed: Seed = None,
    dtype: Dtype = None,
    max_shard_size: ShardSize = None,
    device: Device = "auto",
    threads: Threads = None,
    hessian: Hessian = None,
    data: Data = None,
    no_calibration: NoCalibration = False,
    json: AsJson = False,
    *,
    selection: SelectionOptions,
) -> None:
    """Merge models by a recipe: sculpt's own YAML, or mergekit's as it is.

    Of several recipes in a file those with a `name` go to the parts' folder, where the others find them by that name.

    **Examples**

        sculpt merge recipe.yaml -o merged/ --print-plan

        sculpt merge mergekit-config.yml -o merged/

        sculpt merge adadare --base base/ --tuned sft/ -o fused/
    """
    from ..fusion.recipe.prepare import prepare_recipe
    from ..fusion.recipe.read import find_recipe, read_recipes
    from ..fusion.recipe.several import in_order
    from .console import say
    from .fuse import run_prepared
    from .options import CalibrationOptions, OutputOptions, ProtectOptions, RunOptions, settings_of
    from .recipes import merged_calibration, merged_settings

    file = find_recipe(recipe)
    curvature = CalibrationOptions(hessian=hessian, data=data, no_calibration=no_calibration)
    folder = parts or output.with_name(output.name + "-parts")
    flags = settings_of(
        OutputOptions(dtype=dtype, max_shard_size=max_shard_size),
        selection,
        RunOptions(seed=seed or 0, device=device, threads=threads),
    )
    for one, target in in_order(read_recipes(file), output, folder):
        found = _between(one, base, tuned)
        settings = merged_settings(found, flags, given_flags(ctx))
        if print_plan and any(
            Path(name.path).parent == folder and not Path(name.path).exists() for name in found.named_models()
        ):
            say(f"`{target}` is planned once the recipes that it uses have run")
            continue
        prepared = prepare_recipe(found, output=target, near=file.parent, settings=settings, overwrite=overwrite)
        run_prepared(
            prepared,
            merged_calibration(found, curvature).calibration(
                device, settings.seed, ProtectOptions(protect=found.protect)
            ),
            dry_run=print_plan,
            overwrite=overwrite,
            json=json,
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
