"""`sculpt lora-density` and `sculpt lora-prune`: how dense an adapter is, and a thinner one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, refuse_missing

MAX_ROWS = 40
AdapterPath = Annotated[Path, typer.Argument(help="A PEFT LoRA adapter folder.")]


def density_command(
    adapter: AdapterPath,
    png: Annotated[Path | None, typer.Option("--png", help="Write the picture to this file too.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists.")] = False,
    json: AsJson = False,
) -> None:
    """Count the non-zeros of A, B and B·A in each layer, and compare with what chance would give.

    Expected is 1 − (1 − s_A·s_B)^r (Theorem 3.1 of LoRASculpt). The bound is a distance from it that random matrices
    exceed in at most 5 % of the cases (Theorem 3.2). No base is needed.

    **Examples**

        sculpt lora-density adapter/

        sculpt lora-density adapter/ --png density.png --json
    """
    refuse_missing([adapter])
    from ..evaluate.charts import terminal_chart
    from ..fusion.checkpoint.output.guard import refuse_output
    from ..fusion.lora.density import PROBABILITY, adapter_density
    from ..fusion.lora.density_chart import draw_density, series_of
    from ..fusion.picture import PICTURE
    from .console import answers, out, print_json, say, show_chart, table
    from .progress import progress_bar

    if png is not None:
        refuse_output(png, [adapter], PICTURE, overwrite=overwrite, option="png")
    with progress_bar("counting", unit="modules", hidden=json) as report:
        found = adapter_density(adapter, report=report)
    if png is not None:
        draw_density(found, png, overwrite=overwrite)
    if json:
        print_json(found.as_json())
        return
    shown = sorted(found.layers, key=lambda layer: -abs(layer.density - layer.expected))[:MAX_ROWS]
    names = {layer.name for layer in shown}
    rows = [
        [
            layer.name,
            str(layer.rank),
            f"{layer.density_a:.2%}",
            f"{layer.density_b:.2%}",
            f"{layer.density:.2%}",
            f"{layer.expected:.2%}",
            f"± {layer.bound:.2%}",
            "" if layer.within else "beyond",
        ]
        for layer in found.layers
        if layer.name in names
    ]
    table(
        "density: the fraction of non-zeros",
        ["layer", "rank", "A", "B", "B·A", "expected", "bound", ""],
        rows,
        note=f"chance exceeds the bound in at most {PROBABILITY:.0%} of the cases",
    )
    if len(shown) < len(found.layers):
        out(f"… and {len(found.layers) - len(shown)} more, nearer to what is expected")
    chart = terminal_chart(series_of(found), x="block", room=answers.width)
    show_chart("", chart)
    within = sum(layer.within for layer in found.layers)
    out(
        f"all B·A: {found.density:.2%} non-zero, {found.expected:.2%} expected; "
        f"{within} of {len(found.layers)} layers within the bound"
    )
    if png is not None:
        say(f"wrote {png}")


def prune_command(
    adapter: AdapterPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the thinner adapter.")],
    density: Annotated[float, typer.Option("--density", help="Fraction of each A and each B that is kept.")] = 0.1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")] = False,
    json: AsJson = False,
) -> None:
    """Keep the largest entries of each A and each B of a trained adapter, and set the rest to zero.

    **Examples**

        sculpt lora-prune adapter/ -o thin/ --density 0.1
    """
    from ..fusion.lora.prune import prune_adapter
    from .console import print_json, say
    from .fuse import command_line

    pruned = prune_adapter(adapter, output=output, density=density, command=command_line(), overwrite=overwrite)
    if json:
        print_json(pruned.as_json())
        return
    say(
        f"wrote {pruned.output}: {pruned.layers} layers, B·A {pruned.before:.2%} → {pruned.after:.2%} non-zero, "
        f"{pruned.kept_squares:.1%} of ‖A‖² + ‖B‖² kept"
    )


def register(app: typer.Typer) -> None:
    """Add `lora-density` and `lora-prune`."""
    app.command("lora-density")(density_command)
    app.command("lora-prune")(prune_command)
