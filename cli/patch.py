"""`sculpt pack`, `apply` and `patch`: a model as a small exact patch of its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson, BasePath

if TYPE_CHECKING:
    from ..fusion.patch.look import TensorFigures

MAX_ROWS = 40
Model = Annotated[Path, typer.Argument(help="The model: a fine-tune, or another model made from the base.")]
PatchPath = Annotated[Path, typer.Argument(metavar="PATCH", help="A patch, as `pack` or `fuse --emit patch` write it.")]
PatchPaths = Annotated[list[Path], typer.Argument(metavar="PATCH…", help="A patch, or several of one base.")]
PatchOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Output file. Default: MODEL-patch.safetensors.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Output folder. Default: PATCH-applied.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")]
Gamma = Annotated[float | None, typer.Option("--gamma", help="Strength to use in place of the patch's own.")]
Add = Annotated[
    bool,
    typer.Option("--add", help="Add up the changes of several patches, also in the same tensors: task arithmetic."),
]


def pack_command(
    base: BasePath, model: Model, output: PatchOutput = None, overwrite: Overwrite = False, json: AsJson = False
) -> None:
    """Write a patch that makes a model from its base, bit for bit: weights, configuration, tokenizer and all.

    Only hidden files, what training left, and other forms of the same weights are left out, and named.

    A patch stores only what differs from the base. A fine-tune of all weights takes about a fifth of its size; one that
    changes few weights takes less. `sculpt fuse … --emit patch` writes a fused model as a patch directly. With DARE and
    AdaDARE-γ it is very small, because the seed says which deltas were dropped.

    **Examples**

        sculpt pack base/ sft/ -o sft.safetensors

        sculpt dare base/ sft/ --sparsity 0.9 --emit patch -o fused.safetensors
    """
    from ..fusion.checkpoint import find_model
    from ..fusion.patch.pack import pack
    from .console import gigabytes, print_json, say
    from .progress import progress_bar

    target = output or find_model(model).beside("-patch.safetensors")
    with progress_bar("packing") as report:
        found = pack(base, model, output=target, overwrite=overwrite, progress=report)
    size, whole = found.nbytes, found.of_weights
    if json:
        said = {"output": str(target), "bytes": size, "model_bytes": whole, "ratio": whole / size}
        print_json({**said, "left_out": dict(found.left)})
        return
    for name, why in found.left.items():
        say(f"left out `{name}`: {why}")
    say(f"wrote {target}: {gigabytes(size)} for {gigabytes(whole)} of weights, {whole / size:.1f} ×")


def apply_command(
    base: BasePath,
    patches: PatchPaths,
    output: Output = None,
    gamma: Gamma = None,
    add: Add = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Write the model that a patch makes from its base: the same files, bit for bit.

    Another base than the one that the patch was made from is refused, with the name of a tensor that differs. Several
    patches of one base can be applied together if they change different tensors.

    Every command can read a patch as a model, without writing it: `base/+patch.safetensors`.

    **Examples**

        sculpt apply base/ sft.safetensors -o sft/

        sculpt apply base/ fused.safetensors --gamma 0.6 -o weaker/

        sculpt apply base/ math.safetensors code.safetensors --add -o both/
    """
    from ..fusion.checkpoint import find_model
    from ..fusion.file_kinds import MANIFEST
    from ..fusion.run.patched import apply_patches
    from .console import print_json, say
    from .fuse import command_line
    from .progress import progress_bar

    target = output or find_model(patches[-1]).beside("-applied")
    with progress_bar("applying") as report:
        is_exact = apply_patches(
            base,
            patches,
            output=target,
            gamma=gamma,
            add=add,
            command=command_line(),
            overwrite=overwrite,
            progress=report,
        )
    if json:
        print_json({"output": str(target), "exact": is_exact})
    else:
        anew = "; its manifest says what it is made of" if (target / MANIFEST).is_file() else ", in new weight files"
        say(f"wrote {target}" + (", as it was packed" if is_exact else anew))


def inspect_command(patch: PatchPath, json: AsJson = False) -> None:
    """Show a patch: its base, how each tensor is coded, and how many bytes it takes.

    **Examples**

        sculpt patch inspect sft.safetensors

        sculpt patch inspect sft.safetensors --json
    """
    from ..fusion.patch.file import PatchFile
    from ..fusion.patch.look import figures
    from .console import gigabytes, out, print_json, table

    opened = PatchFile(patch)
    contents, found = opened.contents, figures(opened)
    if json:
        print_json(_as_json(patch, opened.file.identity.nbytes, contents, found))
        return
    shown = sorted(found, key=lambda figure: -figure.coded)[:MAX_ROWS]
    rows = [
        [f.name, f.how, gigabytes(f.nbytes), gigabytes(f.coded), f"{8 * f.coded / max(1, f.entry.num_elements):.2f}"]
        for f in shown
    ]
    more = f"and {len(found) - MAX_ROWS} more (--json shows all)" if len(found) > MAX_ROWS else None
    table("tensors", ["tensor", "coded as", "size", "takes", "bits each"], rows, note=more)
    whole, size = sum(f.nbytes for f in found), opened.file.identity.nbytes
    stored = [name for name, entry in contents.files.items() if entry.stored]
    out(
        f"a patch of `{contents.base}`, by {contents.made_by}: {gigabytes(size)} for {len(found)} tensors of "
        f"{gigabytes(whole)}, {whole / size:.1f} ×; {len(contents.files)} other files, {len(stored)} of them its own"
    )
    fixed = any(f.entry.strength == "fixed" and f.entry.changed for f in found) or contents.strength is None
    out("its strength is fixed" if fixed else f"made with γ = {contents.strength:g}; `--gamma` takes another")


def _as_json(patch: Path, size: int, contents: object, found: list[TensorFigures]) -> dict[str, object]:
    from dataclasses import asdict

    from ..fusion.patch.contents import Contents

    assert isinstance(contents, Contents)
    plain = asdict(contents)
    tensors = plain.pop("tensors")
    return {
        "path": str(patch),
        "bytes": size,
        **plain,
        "tensors": [
            {"name": f.name, "how": f.how, "bytes": f.nbytes, "coded_bytes": f.coded, **tensors[f.name]} for f in found
        ],
    }


def verify_command(
    patch: PatchPath,
    base: Annotated[Path | None, typer.Option("--base", help="Also decode all of it over this base.")] = None,
    json: AsJson = False,
) -> None:
    """Check that a patch is as it was written; with its base, also that it makes the right model.

    **Examples**

        sculpt patch verify sft.safetensors

        sculpt patch verify sft.safetensors --base base/
    """
    from ..fusion.patch.look import check_alone, check_with_base
    from ..fusion.ref import with_patches
    from .console import out, print_json
    from .progress import progress_bar

    if base is None:
        number = len(check_alone(patch).tensors)
        told = f"{patch} is as it was written: {number} tensors (--base decodes them)"
    else:
        with progress_bar("decoding") as report:
            number = check_with_base(with_patches(base, [patch]), progress=report).total()
        told = f"{patch} over {base} makes the very model that it was made of: {number} tensors"
    print_json({"ok": True, "tensors": number, "decoded": base is not None}) if json else out(told)


def register(app: typer.Typer) -> None:
    """Add `pack`, `apply` and `patch`."""
    app.command("pack")(pack_command)
    app.command("apply")(apply_command)
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Look into a patch, or check it.")
    group.command("inspect")(inspect_command)
    group.command("verify")(verify_command)
    app.add_typer(group, name="patch")
