"""`sculpt bound`: how strong an injection may be when the distance to the base has a budget."""

from __future__ import annotations

from dataclasses import replace
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

    sculpt bound base/ sft/ --eta 50 --json
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
    json: AsJson = False,
    *,
    selection: Selection,
    policies: Policies,
    settings: Settings,
) -> None:
    """Measure the pair and print its bounds."""
    from ..api import bound as measure
    from .console import out, print_json, say, table
    from .progress import progress_bar

    with progress_bar("measuring") as report:
        found = measure(
            base,
            tuned,
            eta=eta,
            eta_relative=eta_relative,
            settings=replace(settings, selection=selection, policies=policies),
            progress=report,
        )
    if json:
        print_json(found.as_json())
        return
    shown = found.table()
    more = f"and {len(shown.rows) - MAX_ROWS} more: `--json` gives all" if len(shown.rows) > MAX_ROWS else None
    table(shown.title, list(shown.columns), [list(row) for row in shown.rows[:MAX_ROWS]], note=more)
    out(shown.note)
    if eta is None and eta_relative is None:
        say("no budget was given, so 1% of each tensor's norm is shown; `--eta` or `--eta-relative` set one")


def register(app: typer.Typer) -> None:
    """Add `bound`."""
    settings = SETTINGS.only("device", "threads")
    offered = with_options(selection=SELECTION, policies=POLICIES, settings=settings)(bound)
    app.command("bound", help=HELP)(offered)
