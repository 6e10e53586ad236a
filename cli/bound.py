"""`sculpt bound`: how strong an injection may be when the distance to the base has a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..fusion.plan.options import Policies, Selection
from ..fusion.run.settings import Settings
from .flags import with_options
from .options import POLICIES, SELECTION, SETTINGS, AsJson, BasePath, TunedPath

MAX_ROWS = 80
HELP = """Print Σ|δ|, ‖base‖₁ and the largest γ of each block, for a budget η of the L1 distance to the base.

Theorem 2 of AdaDARE-γ: the expected L1 distance of the fused model to the base is γ·Σ|δ|, so γ may be η/Σ|δ|. With
`--eta` or `--eta-relative`, the budget of each tensor, `sculpt fuse` keeps every tensor within it.

**Examples**

    sculpt bound base/ sft/

    sculpt bound base/ sft/ --eta-relative 0.01

    sculpt bound base/ sft/ --eta 50 -o bounds.json
"""

Eta = Annotated[float | None, typer.Option("--eta", help="η of each tensor: an L1 distance.")]
EtaRelative = Annotated[
    float | None, typer.Option("--eta-relative", help="η of each tensor as a fraction of its L1 norm in the base.")
]


def bound(
    base: BasePath,
    tuned: TunedPath,
    eta: Eta = None,
    eta_relative: EtaRelative = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for what `--json` prints; needed with several processes."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace such a file.")] = False,
    json: AsJson = False,
    *,
    selection: Selection,
    policies: Policies,
    settings: Settings,
) -> None:
    """Measure the pair, print its bounds, and write them where that is asked for."""
    from contextlib import nullcontext

    from ..api import bound as measure
    from ..fusion.checkpoint.output.guard import file_kind, refuse_output
    from ..fusion.checkpoint.output.processes import Processes
    from ..fusion.errors import MethodError
    from .console import json_text, out, print_json, say, table
    from .progress import progress_bar

    processes, kind = Processes(), file_kind("file of bounds", b'{\n "blocks"')
    if output is not None:
        refuse_output(output, [base, tuned], kind, overwrite=overwrite)
    elif processes.are_several:
        raise MethodError(f"{processes.count} processes can share this only with an output", hint="`-o` names one")
    with nullcontext() if output is None else processes.meet(output, made_by="bound"):
        with progress_bar("measuring") as report:
            found = measure(
                base,
                tuned,
                eta=eta,
                eta_relative=eta_relative,
                settings=replace(settings, selection=selection, policies=policies),
                processes=processes,
                progress=report,
            )
        if output is not None:
            text = json_text(found.as_json())
            may_replace = kind.may_replace if overwrite else None
            processes.publish(lambda file: file.write_text(text, encoding="utf-8"), may_replace)
    if json:
        print_json(found.as_json())
        return
    shown = found.table()
    more = f"and {len(shown.rows) - MAX_ROWS} more: `--json` gives all" if len(shown.rows) > MAX_ROWS else None
    table(shown.title, list(shown.columns), [list(row) for row in shown.rows[:MAX_ROWS]], note=more)
    out(shown.note)
    if eta is None and eta_relative is None:
        say("no budget was given: this is for 1% of each tensor's norm (`--eta` and `--eta-relative` set a budget)")


def register(app: typer.Typer) -> None:
    """Add `bound`."""
    settings = SETTINGS.only("device", "threads")
    offered = with_options(selection=SELECTION, policies=POLICIES, settings=settings)(bound)
    app.command("bound", help=HELP)(offered)
