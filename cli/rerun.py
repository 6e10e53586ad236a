"""`sculpt recipe` and `sculpt rerun`: how an output was made, and the same output again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, Overwrite

if TYPE_CHECKING:
    from ..fusion.run.made import Made

MadePath = Annotated[
    Path, typer.Argument(metavar="MADE", help="What sculpt wrote: a checkpoint, patch, adapter, sweep, or a manifest.")
]


def recipe_command(made: MadePath, json: AsJson = False) -> None:
    """Print the recipe of an output, for `sculpt merge`: sculpt's own YAML, or the recipe that it was merged by.

    Models and samples are called by their names on the hub, or by the names of their folders and files. A patch has the
    recipe of its model. An adapter has none; `sculpt rerun` makes it again.

    **Examples**

        sculpt recipe sft-two-sided/

        sculpt recipe sft-two-sided/ > recipe.yaml
    """
    from ..fusion.record.recipe import recipe_of, recipe_text
    from ..fusion.run.made import made_at
    from .console import out, print_json

    manifest = made_at(made).recipe_source()
    if json:
        print_json({"command": manifest.command, "recipe": recipe_of(manifest)})
        return
    out(f"# {manifest.command or 'made from Python'}\n{recipe_text(manifest).rstrip()}")


def rerun_command(
    made: MadePath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the output is written again.")],
    places: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="NAME=PATH", help="Where a model or file of the command is now; repeatable."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make an output again and compare every byte: a checkpoint, a file of weights, a patch or an adapter.

    It runs the command in the output's manifest; for what Python made, the recipe. Models and files are looked up by
    name in this folder and beside the output; `--at` says where others are. The exit code is 0 if the bytes are the
    same, and 3 if they are not.

    **Examples**

        sculpt rerun sft-two-sided/ -o again/

        sculpt rerun sculpt-manifest.json -o again/ --at base=models/base --at train.jsonl=data/train.jsonl

        sculpt rerun sft-dare.safetensors -o again.safetensors
    """
    from ..fusion.run.made import CARD, made_at
    from .console import out, warn

    first = made_at(made)
    known = dict(_place(text) for text in places or ())
    folders = (Path(), first.place.parent)
    if first.command is not None:
        also = ["--emit", "patch"] if first.is_patch else []  # which a manifest does not tell: its model is the same
        _by_command([*shlex.split(first.command), *also], known, folders, output, overwrite=overwrite)
    else:
        _by_recipe(first, known, folders, output, overwrite=overwrite)
    again = made_at(output)
    differs = first.first_difference(again)
    if differs is not None:
        warn(f"{output} is not the same: {differs}")
        raise typer.Exit(3)
    but = "" if first.place.name == again.place.name or CARD not in first.files else ", but for the name on its card"
    out(f"{output} has the bytes of {made}, {first.told_size()}{but}")


def _by_command(
    command: list[str], known: Mapping[str, str], folders: tuple[Path, ...], output: Path, *, overwrite: bool
) -> None:
    from .app import app_of

    words = [_found(word, known, folders) for word in command[1:]]
    words += ["-o", str(output), *(["--overwrite"] if overwrite else [])]
    sys.argv[1:] = words
    app_of(words[0])(words, standalone_mode=False)


def _by_recipe(
    first: Made, known: Mapping[str, str], folders: tuple[Path, ...], output: Path, *, overwrite: bool
) -> None:
    """Make what was made from Python again, by the recipe of its manifest.

    Raises:
        MethodError: Its recipe does not say all that made it.
    """
    from tempfile import TemporaryDirectory

    import yaml

    from ..api import merge
    from ..fusion.record.recipe import recipe_of
    from .console import quiet_environment
    from .progress import progress_bar

    first.refuse_unrepeatable()
    recipe = recipe_of(first.recipe_source())

    def place(name: str) -> str:
        return _found(name, known, folders)

    base, tuned = recipe.pop("base", None), recipe.pop("models", None)
    named: dict[str, Any] = {"base": place(base), "tuned": list(map(place, tuned))} if base and tuned else {}
    calibration = recipe.get("calibration") or {}
    for key in calibration.keys() & {"data", "hessian", "protect"}:
        value = calibration[key]
        calibration[key] = list(map(place, value)) if isinstance(value, list) else place(value)
    quiet_environment()
    with TemporaryDirectory() as scratch, progress_bar("fusing") as report:
        file = Path(scratch) / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
        merge(file, output=output, overwrite=overwrite, progress=report, **named)


def _place(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise typer.BadParameter(f"`{text}` is not a name and a path, such as base=models/base", param_hint="--at")
    return name, path


def _found(word: str, known: Mapping[str, str], folders: tuple[Path, ...]) -> str:
    """Return a word of a command with the place of what it names, if it names something that lies somewhere."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    name, colon, weight = value.rpartition(":")  # as in `--protect text.jsonl:3`
    for own, rest in ((value, ""), (name, f"{colon}{weight}")):
        if own in known:
            return f"{flag}{equals}{known[own]}{rest}"
        if own and not own.startswith("-") and "/" not in own:
            place = next((folder / own for folder in folders if (folder / own).exists()), None)
            if place is not None:
                return f"{flag}{equals}{place}{rest}"
    return word


def register(app: typer.Typer) -> None:
    """Add `recipe` and `rerun`."""
    app.command("recipe")(recipe_command)
    app.command("rerun")(rerun_command)
