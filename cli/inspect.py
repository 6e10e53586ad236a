"""`sculpt inspect` and `sculpt diff`: what a checkpoint holds, and how far two lie apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson

if TYPE_CHECKING:
    from ..fusion.checkpoint import TensorInfo

CheckpointPath = Annotated[Path, typer.Argument(help="A checkpoint folder or weight file.")]
ListAll = Annotated[bool, typer.Option("--tensors", help="List every tensor, not only every block.")]
BAR_WIDTH = 24


def inspect_command(checkpoint: CheckpointPath, tensors: ListAll = False, json: AsJson = False) -> None:
    """Show a checkpoint's tensors, shapes, dtypes, shards, sizes and parameters by block, from its headers.

    **Examples**

        sculpt inspect sft/

        sculpt inspect model.safetensors --tensors

        sculpt inspect sft/ --json
    """
    from ..fusion.checkpoint.open import open_whole
    from ..fusion.names import block_of, natural_key
    from ..fusion.places.settings import streaming
    from .console import count, gigabytes, out, print_json, table

    with streaming():  # the headers alone are read
        opened = open_whole(checkpoint)
    infos = sorted(opened.tensors.values(), key=lambda info: natural_key(info.name))
    blocks: dict[str, list[TensorInfo]] = {}
    for info in infos:
        blocks.setdefault(block_of(info.name), []).append(info)
    if json:
        print_json(_inspect_json(checkpoint, infos, blocks) | {"decoded": dict(opened.decoded)})
        return
    if tensors:
        rows = [
            [i.name, i.kind.torch, str(list(i.shape)), gigabytes(i.nbytes), (i.file or checkpoint).name] for i in infos
        ]
        table("tensors", ["name", "dtype", "shape", "size", "file"], rows)
    rows = [
        [
            block,
            str(len(found)),
            count(sum(i.num_elements for i in found)),
            gigabytes(sum(i.nbytes for i in found)),
            " ".join(sorted({i.kind.torch for i in found})),
        ]
        for block, found in blocks.items()
    ]
    table("blocks", ["block", "tensors", "parameters", "size", "dtype"], rows)
    # Of a patch over its base the files of both.
    files = dict.fromkeys([*opened.files, *(info.file for info in infos if info.file is not None)])
    per_file = [(_within(file, opened.path), [i for i in infos if i.file == file]) for file in files]
    rows = [[name, str(len(held)), gigabytes(sum(i.nbytes for i in held))] for name, held in per_file]
    if opened.is_foreign and opened.ref.base is None:  # a tensor may lie in several files, but for a patch's
        rows = [[_within(file, opened.path), "", gigabytes(file.stat().st_size)] for file in files]
    table("files", ["file", "tensors", "size"], rows)
    total = sum(info.num_elements for info in infos)
    for name, number in opened.decoded.items():
        out(f"{number} tensor{'s' if number > 1 else ''} of {name}, shown as what the codes are read as")
    out(f"{len(infos)} tensors, {count(total)} parameters, {gigabytes(opened.nbytes)} in {len(files)} file(s)")


def _within(file: Path, folder: Path) -> str:
    """Return what a file is called in the folder that was asked for."""
    return file.relative_to(folder).as_posix() if folder in file.parents else file.name


def _inspect_json(path: Path, infos: list[TensorInfo], blocks: dict[str, list[TensorInfo]]) -> dict[str, Any]:
    return {
        "path": str(path),
        "num_parameters": sum(info.num_elements for info in infos),
        "nbytes": sum(info.nbytes for info in infos),
        "blocks": {block: sum(info.num_elements for info in found) for block, found in blocks.items()},
        "tensors": [
            {
                "name": info.name,
                "dtype": info.kind.torch,
                "shape": list(info.shape),
                "nbytes": info.nbytes,
                "file": (info.file or path).name,
            }
            for info in infos
        ],
    }


First = Annotated[Path, typer.Argument(help="A checkpoint, such as the base.")]
Second = Annotated[Path, typer.Argument(help="Another, such as the fine-tune.")]
Top = Annotated[int, typer.Option("--top", help="Number of tensors to show, those that moved most first; 0 shows all.")]


def diff_command(first: First, second: Second, top: Top = 40, json: AsJson = False) -> None:
    """Show for each tensor how many elements changed, the relative norm of the delta, and the largest change.

    **Examples**

        sculpt diff base/ sft/

        sculpt diff base/ fused/ --top 0 --json
    """
    from dataclasses import asdict
    from math import isfinite

    from ..fusion.run.diff import diff
    from .console import out, print_json, table
    from .progress import progress_bar

    with progress_bar("comparing") as report:
        found = diff(first, second, progress=report)
    if json:
        print_json(asdict(found))
        return
    # NaN and infinity, which no bar can show, come first.
    moved = sorted(found.tensors, key=lambda tensor: (isfinite(tensor.relative_norm), -tensor.relative_norm))
    shown = moved[:top] if top else moved
    largest = max((tensor.relative_norm for tensor in moved if isfinite(tensor.relative_norm)), default=0.0) or 1.0
    rows = [
        [
            tensor.name,
            f"{tensor.changed:.2%}",
            f"{tensor.relative_norm:.4g}",
            f"{tensor.largest:.4g}",
            _bar(tensor.relative_norm / largest) if isfinite(tensor.relative_norm) else "not finite",
        ]
        for tensor in shown
    ]
    table("largest changes", ["tensor", "changed", "‖δ‖/‖W‖", "largest |δ|", "‖δ‖/‖W‖"], rows, bar=4)
    same = sum(tensor.changed == 0 for tensor in moved)
    out(f"{len(moved)} tensors compared, {same} identical, {len(moved) - len(shown)} not shown (--top 0 shows all)")
    for names, what in (
        (found.only_first, f"only in {first}"),
        (found.only_second, f"only in {second}"),
        (found.other_form, "of another shape or dtype"),
    ):
        if names:
            out(f"{what}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''} ({len(names)})")


def _bar(share: float) -> str:
    """Return a bar of eighths of a character, padded to a fixed width."""
    eighths = round(min(share, 1.0) * BAR_WIDTH * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(BAR_WIDTH)


def register(app: typer.Typer) -> None:
    """Add `inspect` and `diff`."""
    app.command("inspect")(inspect_command)
    app.command("diff")(diff_command)
