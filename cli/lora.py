"""`sculpt lora-merge` and `sculpt lora-extract`: adapters into the base, into one adapter, out of a fine-tune."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..fusion.plan.options import Policies, Selection
from ..fusion.run.calibration import Calibration
from ..fusion.run.settings import Settings
from ..fusion.transforms.merge import Election
from .flags import FlagGroup, flag_of, given_flags, parse_numbers, with_options
from .lora_learn import ADAPTIVE, LearnOptions, learn_weights
from .options import POLICIES, SELECTION, SETTINGS, TARGET, AsJson, BasePath, Target, TunedPath

if TYPE_CHECKING:
    from ..fusion.lora.combine import AdapterReport
    from ..fusion.methods import Method
    from ..learn.parts import LinearMerge

MergeName = Literal["task-arithmetic", "linear", "ties", "dare-ties", "dare-linear", "cat", "svd"]
SUMS = ("task-arithmetic", "linear", "cat")  # three names of Σ w·δ
FUSED_AS = {**dict.fromkeys((*SUMS, "svd"), "task-arithmetic"), "dare-linear": "dare"}
MAX_ROWS = 40

Adapters = Annotated[list[Path], typer.Argument(help="PEFT adapter folders of that base.")]


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How the adapters become one.

    Attributes:
        method: `task-arithmetic` and `linear` add the deltas; `ties` and the `dare`s drop some first; `cat` and `svd`
            are for `--as-adapter`.
        weights: One for each adapter, or one for all, separated by commas; or `adaptive`, learned on `--buffer`.
        density: Fraction of each delta that is kept. Default: the method's own.
        scale: λ, the strength of the merged delta.
        election: For `ties` and `dare-ties`: votes for a sign are `weighted` by the weights, or `unweighted`, as in
            PEFT and when weights are learned. Default: `unweighted`.
        normalize: Divide by the sum of the weights that take part; if `unweighted`, by the number of adapters that
            agree. Default: as in the method's own command.
        rank: With `--as-adapter`, the largest rank of a module. Default: the sum stays exact.
        energy: With `--as-adapter`, the part of each ‖δ‖² to keep; the rank follows from it.
    """

    method: MergeName = "task-arithmetic"
    weights: str = "1"
    density: float | None = None
    scale: float = 1.0
    election: Election | None = None
    normalize: Annotated[bool | None, typer.Option("--normalize/--no-normalize")] = None
    as_adapter: Annotated[
        bool,
        typer.Option("--as-adapter", help="Write one adapter instead of a whole checkpoint.", rich_help_panel="Merge"),
    ] = False
    rank: int | None = None
    energy: float | None = None


def method_of(options: MergeOptions) -> Method:
    """Return the fusion method with its options, for weights that were typed and for learned ones alike."""
    from ..fusion.errors import MethodError
    from ..fusion.methods import METHODS
    from ..fusion.methods.checks import fraction

    method = METHODS[FUSED_AS.get(options.method, options.method)]
    fields = {field.name for field in dataclasses.fields(method)}
    values: dict[str, Any] = {"weights": parse_numbers(options.weights, "--weights"), "scale": options.scale}
    if "election" in fields:  # a weight is the strength of its adapter, and must not cancel out
        values["election"] = options.election or "unweighted"
    elif options.election is not None:
        raise MethodError(f"`--election` has no effect on {method.title}, which does not elect signs")
    if options.normalize is not None:
        values["normalize"] = options.normalize
    if options.density is not None:
        fraction("density", options.density)
        if method.name == "task-arithmetic":
            raise MethodError("`--density` has no effect on a method that keeps all deltas")
        values |= {"sparsity": 1 - options.density} if "sparsity" in fields else {"density": options.density}
    return method(**values)


def linear_merge_of(options: MergeOptions, seed: int) -> LinearMerge:
    """Return what weights are learned for: what `method_of` merges."""
    from ..fusion.errors import MethodError
    from ..learn.parts import LinearMerge

    if options.scale != 1:
        raise MethodError("`--scale` has no effect on learned weights")
    return LinearMerge(method=method_of(replace(options, weights="1")), seed=seed)


def merge_command(
    ctx: typer.Context,
    base: BasePath,
    adapters: Adapters,
    merge: MergeOptions,
    learn: LearnOptions,
    target: Target,
    selection: Selection,
    policies: Policies,
    settings: Settings,
    json: AsJson = False,
) -> None:
    """Merge LoRA adapters into their base, or into one adapter.

    Deltas are added as products s·B·A. (PEFT's `linear` adds the A and the B matrices separately, which adds cross
    terms.)

    **Examples**

        sculpt lora-merge base/ code/ math/ --weights 0.7,0.3 -o merged/

        sculpt lora-merge base/ code/ math/ --method ties --density 0.2 --weights 1,3

        sculpt lora-merge base/ code/ math/ --as-adapter --method cat -o both/

        sculpt lora-merge base/ code/ math/ --as-adapter --method svd --rank 16 -o both/

        sculpt lora-merge base/ code/ math/ --method ties --weights adaptive --buffer buffer.jsonl --b-max 3.0
    """
    from ..fusion.errors import MethodError
    from ..fusion.launch import launched

    if merge.as_adapter:
        _refuse_as_adapter(merge, given_flags(ctx))
    elif merge.method in ("cat", "svd") or merge.rank is not None or merge.energy is not None:
        named = f"`--method {merge.method}`" if merge.method in ("cat", "svd") else "`--rank` and `--energy`"
        raise MethodError(f"{named} makes an adapter", hint="add `--as-adapter`, or take `--method linear`")
    if merge.weights == ADAPTIVE:
        if launched().count > 1:
            raise MethodError(
                f"weights are learned by one process, and {launched().count} were started",
                hint="learn them first in one process; it prints the `--weights` for the same merge",
            )
        alpha = learn_weights(
            base,
            adapters,
            linear_merge_of(merge, settings.seed),
            learn,
            device=settings.device,
            overwrite=target.overwrite,
        )
        merge = replace(merge, weights=",".join(map(repr, alpha)))
    elif learn != LearnOptions():
        raise MethodError("`--buffer` and its options are for `--weights adaptive`")
    if merge.as_adapter:
        _merge_as_adapter(base, adapters, merge, target, json=json)
        return
    from ..api import default_output
    from .fuse import run_fuse

    if target.output is None:
        target = replace(target, output=default_output(adapters, merge.method))
    run_fuse(
        base,
        adapters,
        method=method_of(merge),
        target=target,
        settings=settings,
        selection=selection,
        policies=policies,
        calibration=Calibration(),
        json=json,
    )


def _refuse_as_adapter(merge: MergeOptions, given: set[str]) -> None:
    """Refuse what has no effect on an adapter, or cannot be one."""
    from ..fusion.errors import MethodError

    idle = {parameter for group in (SETTINGS, SELECTION, POLICIES) for _, parameter in group.fields}
    learning = {"seed", "device"} if merge.weights == ADAPTIVE else set[str]()
    for parameter in sorted((idle - learning | {"dry_run", "density", "normalize", "election"}) & given):
        raise MethodError(f"`{flag_of(parameter)}` is for merging into the base, not into an adapter")
    if merge.method not in (*SUMS, "svd"):
        raise MethodError(
            f"what `--method {merge.method}` makes has full rank, so it cannot be an adapter",
            hint="merge into the base, then `sculpt lora-extract` the best adapter of a rank",
        )
    if merge.method == "svd" and merge.rank is None and merge.energy is None:
        raise MethodError("`--method svd` needs `--rank` or `--energy`")


def _merge_as_adapter(base: Path, adapters: list[Path], merge: MergeOptions, target: Target, *, json: bool) -> None:
    from ..api import default_output
    from ..fusion.arithmetic.per_model import spread
    from ..fusion.lora.combine import combine_adapters
    from .fuse import command_line

    weights = spread("weights", parse_numbers(merge.weights, "--weights"), len(adapters))
    report = combine_adapters(
        base,
        adapters,
        output=target.output or default_output(adapters, f"{merge.method}-adapter"),
        weights=[merge.scale * weight for weight in weights],
        rank=merge.rank,
        energy=merge.energy,
        command=command_line(),
        overwrite=target.overwrite,
    )
    show_adapter(report, json=json)


def extract_command(
    base: BasePath,
    tuned: TunedPath,
    include: Annotated[
        list[str] | None, typer.Option(help="Take only tensors whose name matches this glob; may be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave out tensors whose name matches this glob; may be repeated.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Largest rank of a module. Default: 16.")] = None,
    energy: Annotated[
        float | None, typer.Option("--energy", help="Part of each ‖δ‖² to keep; the rank follows from it.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: TUNED-adapter.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")] = False,
    leave: Annotated[
        Literal["save", "drop"],
        typer.Option("--others", help="Changes of tensors that are not matrices: save them whole, or drop them."),
    ] = "save",
    json: AsJson = False,
) -> None:
    """Extract the best LoRA adapter of a fine-tune, with the error of each layer.

    **Examples**

        sculpt lora-extract base/ sft/ --rank 32

        sculpt lora-extract base/ sft/ --energy 0.95 --include 'model.layers.*'
    """
    from ..api import default_output
    from ..fusion.lora.extract import extract_adapter
    from ..fusion.plan.options import Selection
    from .fuse import command_line
    from .progress import progress_bar

    with progress_bar("extracting") as report_bytes:
        report = extract_adapter(
            base,
            tuned,
            output=output or default_output([tuned], "adapter"),
            rank=rank,
            energy=energy,
            selection=Selection(include=tuple(include or ()), exclude=tuple(exclude or ())),
            rest=leave,
            command=command_line(),
            overwrite=overwrite,
            progress=report_bytes,
        )
    show_adapter(report, json=json)


def show_adapter(report: AdapterReport, *, json: bool) -> None:
    """Print an adapter that was written: each layer's rank and error, the worst first where there are many."""
    from .console import print_json, say, table

    if json:
        print_json(report.as_json())
        return
    layers = report.layers
    shown = layers if len(layers) <= MAX_ROWS else sorted(layers, key=lambda layer: -layer.error)[:MAX_ROWS]
    rows = [
        [layer.name, str(layer.rank), str(layer.rank_before), f"{layer.norm:.4g}", f"{layer.error:.2%}"]
        for layer in shown
    ]
    table("adapter", ["layer", "rank", "of", "‖δ‖", "error"], rows, aside=True)
    if len(shown) < len(layers):
        say(f"… and {len(layers) - len(shown)} more, each with a smaller error")
    say(f"wrote {report.output}: {len(layers)} layers, relative error {report.error:.2%}")


def register(app: typer.Typer) -> None:
    """Add `lora-merge` and `lora-extract`."""
    groups = {
        "merge": FlagGroup(of=MergeOptions, panel="Merge"),
        "learn": FlagGroup(of=LearnOptions, panel="Learned weights"),
        "target": TARGET,
        "selection": SELECTION,
        "policies": POLICIES,
        "settings": SETTINGS,
    }
    app.command("lora-merge", help=merge_command.__doc__)(with_options(**groups)(merge_command))
    app.command("lora-extract")(extract_command)
