"""`sculpt bound`: how strong an injection may be when the distance to the base has a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..fusion.plan.options import Policies, Selection
from ..fusion.run.settings import Settings
from .flags import with_options
from .options import POLICIES, SELECTION, SETTINGS, AsJson, BasePath, TunedPath

if TYPE_CHECKING:
    from ..fusion.arithmetic.budget import Budget, L1Norms
    from ..fusion.run.bounds import TensorBound

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
RELATIVE_DEFAULT = 0.01


def bound(
    base: BasePath,
    tuned: TunedPath,
    eta: Eta = None,
    eta_relative: EtaRelative = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for what `--json` prints; several processes want one.")
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

    from ..fusion.arithmetic.budget import Budget
    from ..fusion.checkpoint.output.guard import file_kind, refuse_output
    from ..fusion.checkpoint.output.processes import Processes
    from ..fusion.errors import MethodError
    from ..fusion.run.bounds import measure_bounds
    from .console import json_text, print_json
    from .progress import progress_bar

    given = eta is not None or eta_relative is not None
    budget = Budget(eta=eta, eta_relative=eta_relative if given else RELATIVE_DEFAULT)
    processes, kind = Processes(), file_kind("file of bounds", b'{\n "blocks"')
    if output is not None:
        refuse_output(output, [base, tuned], kind, overwrite=overwrite)
    elif processes.are_several:
        raise MethodError(f"{processes.count} processes share this where it has an output", hint="`-o` names one")
    with nullcontext() if output is None else processes.meet(output, made_by="bound"):
        with progress_bar("measuring") as report:
            found = measure_bounds(
                base,
                tuned,
                selection=selection,
                policies=policies,
                device=settings.device,
                threads=settings.threads,
                processes=processes,
                progress=report,
            )
        if output is not None:
            text = json_text(_as_json(found, budget))
            may_replace = kind.may_replace if overwrite else None
            processes.publish(lambda file: file.write_text(text, encoding="utf-8"), may_replace)
    print_json(_as_json(found, budget)) if json else _show(found, budget, given)


def _blocks(found: tuple[TensorBound, ...]) -> dict[str, list[TensorBound]]:
    from ..fusion.names import block_of, natural_key

    blocks: dict[str, list[TensorBound]] = {}
    for tensor in found:
        blocks.setdefault(block_of(tensor.name), []).append(tensor)
    return {name: blocks[name] for name in sorted(blocks, key=natural_key)}


def _sum(tensors: list[TensorBound]) -> L1Norms:
    from ..fusion.arithmetic.budget import L1Norms

    return sum((tensor.norms for tensor in tensors), L1Norms(delta=0.0, base=0.0))


def _gamma(value: float) -> str:
    return "any" if value == float("inf") else f"{value:.4g}"


def _show(found: tuple[TensorBound, ...], budget: Budget, given: bool) -> None:
    from .console import count, out, say, table

    rows = []
    for block, tensors in _blocks(found).items():
        norms = _sum(tensors)
        rows.append(
            [
                block,
                _gamma(min(tensor.largest_gamma(budget) for tensor in tensors)),
                f"{norms.delta / norms.base:.3%}" if norms.base else "–",
                f"{norms.delta:.4g}",
                f"{norms.base:.4g}",
                count(sum(tensor.num_elements for tensor in tensors)),
            ]
        )
    limit = f"{budget.eta:g}" if budget.eta is not None else f"{budget.eta_relative:g}·‖base‖₁"
    columns = ["block", "largest γ", "Σ|δ|/‖base‖₁", "Σ|δ|", "‖base‖₁", "parameters"]
    more = f"and {len(rows) - MAX_ROWS} more: `--json` gives all" if len(rows) > MAX_ROWS else None
    table(f"largest γ for η = {limit} of each tensor", columns, rows[:MAX_ROWS], note=more)
    whole = _sum(list(found))
    smallest = min(found, key=lambda tensor: tensor.largest_gamma(budget))
    out(
        f"{len(found)} tensors: Σ|δ| {whole.delta:.4g}, ‖base‖₁ {whole.base:.4g}. One γ that is within the budget of "
        f"all of them: {_gamma(smallest.largest_gamma(budget))}, by `{smallest.name}`."
    )
    if not given:
        say("no budget was given, so 1% of each tensor's norm is shown; `--eta` or `--eta-relative` set one")


def _as_json(found: tuple[TensorBound, ...], budget: Budget) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return None if value == float("inf") else value

    def figures(name: str, tensors: list[TensorBound]) -> dict[str, Any]:
        norms = _sum(tensors)
        return {
            "name": name,
            "num_elements": sum(tensor.num_elements for tensor in tensors),
            "delta_l1": norms.delta,
            "base_l1": norms.base,
            "largest_gamma": finite(min(tensor.largest_gamma(budget) for tensor in tensors)),
        }

    return {
        "eta": budget.eta,
        "eta_relative": budget.eta_relative,
        "blocks": [figures(name, tensors) for name, tensors in _blocks(found).items()],
        "tensors": [figures(tensor.name, [tensor]) for tensor in found],
        "largest_gamma": finite(min(tensor.largest_gamma(budget) for tensor in found)),
    }


def register(app: typer.Typer) -> None:
    """Add `bound`."""
    settings = SETTINGS.only("device", "threads")
    offered = with_options(selection=SELECTION, policies=POLICIES, settings=settings)(bound)
    app.command("bound", help=HELP)(offered)
