"""`sculpt recipe` and `sculpt rerun`: how an output was made, and the same output again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson, Overwrite

if TYPE_CHECKING:
    from ..fusion.record.manifest import Manifest

Made = Annotated[Path, typer.Argument(help="What sculpt wrote: a checkpoint, a sweep's folder, or a manifest.")]


def recipe_command(made: Made, json: AsJson = False) -> None:
    """Print the recipe of an output: sculpt's own YAML, or the one that it was merged by, for `sculpt merge`.

    Models and samples are called by their names on the hub, or of their folders and files.

    **Examples**

        sculpt recipe sft-two-sided/

        sculpt recipe sft-two-sided/ > recipe.yaml
    """
    from ..fusion.record.recipe import recipe_of, recipe_text
    from .console import out, print_json

    manifest = _manifest(made)
    if json:
        print_json({"command": manifest.command, "recipe": recipe_of(manifest)})
        return
    out(f"# {manifest.command or 'made from Python'}\n{recipe_text(manifest).rstrip()}")


def rerun_command(
    made: Made,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where it is made again.")],
    places: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="NAME=PATH", help="Where a model or file of the command lies now; repeatable."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make an output again by the command that its manifest has, and compare every byte.

    Models and files are looked for by their names in this folder and beside the output; `--at` says where others lie.
    Exit code 0 where the output has the same bytes, 3 where it has not.

    **Examples**

        sculpt rerun sft-two-sided/ -o again/

        sculpt rerun sculpt-manifest.json -o again/ --at base=models/base --at train.jsonl=data/train.jsonl
    """
    from ..fusion.errors import MethodError
    from .app import narrowed
    from .console import out, warn

    manifest = _manifest(made)
    if manifest.command is None:
        raise MethodError("this was made from Python, by no command", hint="`sculpt recipe` prints what it was")
    _, *words = shlex.split(manifest.command)
    known = dict(_place(text) for text in places or ())
    beside = (made if made.is_dir() else made.parent).resolve().parent
    words = [_found(word, known, (Path(), beside)) for word in words]
    words += ["-o", str(output), *(["--overwrite"] if overwrite else [])]
    sys.argv[1:] = words
    narrowed(words[0])(words, standalone_mode=False)
    again = _manifest(output)
    called = made.resolve() if made.is_dir() else made.resolve().parent
    differs = _first_difference(manifest, again, cards=called.name == output.resolve().name)
    if differs is not None:
        warn(f"{output} is not the same: {differs}")
        raise typer.Exit(3)
    but = "" if called.name == output.resolve().name else ", but for the name on its card"
    out(f"{output} has the bytes of {made}, {len(again.outputs) + len(again.companions)} files{but}")


def _manifest(made: Path) -> Manifest:
    from ..fusion.checkpoint.output.guard import SWEEP_RECORD
    from ..fusion.record.manifest import Manifest

    folder = made.parent if made.is_file() else made
    return Manifest.read(folder / "fused" if (folder / SWEEP_RECORD).is_file() else folder)


def _place(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise typer.BadParameter(f"`{text}` is no name and place such as base=models/base", param_hint="--at")
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


def _first_difference(first: Manifest, second: Manifest, *, cards: bool) -> str | None:
    """Return what tells two outputs apart, or None; of other names their cards have these."""
    inputs = [{record.role: record.fingerprint for record in one.inputs} for one in (first, second)]
    if inputs[0] != inputs[1]:
        return "it was made of other models"
    files = [
        {
            record.name: record.digest
            for record in (*one.outputs, *one.companions)
            if cards or record.name != "README.md"
        }
        for one in (first, second)
    ]
    other = sorted(name for name in files[0].keys() | files[1].keys() if files[0].get(name) != files[1].get(name))
    return f"`{other[0]}` differs" if other else None


def register(app: typer.Typer) -> None:
    """Add `recipe` and `rerun`."""
    app.command("recipe")(recipe_command)
    app.command("rerun")(rerun_command)
