"""`sculpt fuse` and a command for each other method: the same pipeline, the method's own options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from ..fusion.methods import METHODS, AdaDare, Method
from .flags import with_options
from .options import (
    AsJson,
    BasePath,
    CalibrationOptions,
    OutputOptions,
    RunOptions,
    SelectionOptions,
    TunedPath,
    TunedPaths,
    settings_of,
)

EXAMPLES = {
    "fuse": [
        "sculpt fuse base/ sft/ --gamma 0.5 --sparsity 0.9",
        "sculpt fuse base/ sft/ --hessian hessian.safetensors -o fused/",
        "sculpt fuse base/ sft/ --data train.jsonl --allocation exact",
        "sculpt fuse base/ sft/ --no-calibration --include 'model.layers.*' --dry-run",
    ],
    "dare": ["sculpt dare base/ sft/ --sparsity 0.9 --scale 1.0"],
    "dare-ties": ["sculpt dare-ties base/ code/ math/ --sparsity 0.8 --weights 1,0.5"],
    "linear": ["sculpt linear one/ two/ three/ --weights 2,1,1"],
    "task-arithmetic": [
        "sculpt task-arithmetic base/ sft/ --scale 0.5",
        "sculpt task-arithmetic base/ code/ math/ --weights 0.6,0.4",
    ],
}


def run_fuse(
    base: Path,
    tuned: Sequence[Path],
    *,
    method: Method,
    output: OutputOptions,
    selection: SelectionOptions,
    run: RunOptions,
    curvature: CalibrationOptions,
    json: bool,
) -> None:
    """Plan, calibrate where the method wants it, fuse, and show what was done."""
    from ..api import prepare_fuse, statistics
    from ..fusion.fuse import execute
    from . import fuse_view
    from .console import print_json, progress_bar, say

    calibration = curvature.calibration(run.device, run.seed)
    prepared = prepare_fuse(
        base,
        tuned,
        output=output.output,
        method=method,
        settings=settings_of(output, selection, run),
        overwrite=output.overwrite,
    )
    if run.dry_run:
        print_json(fuse_view.plan_json(prepared)) if json else fuse_view.show_plan(prepared)
        return
    for note in prepared.plan.notes:
        say(f"note: {note}")
    measures = method.uses_curvature and calibration.enabled and calibration.hessian is None
    if measures:
        say(f"calibrating on {calibration.data or 'the text that ships with sculpt (--data names your own)'}")
    with (
        progress_bar("calibrating and fusing", unit="steps", hidden=not measures) as report_blocks,
        statistics(prepared, calibration, progress=report_blocks) as found,
        progress_bar("fusing", hidden=measures) as report,
    ):
        manifest = execute(
            prepared,
            curvature=found.curvature,
            provenance=found.provenance,
            command=command_line(),
            overwrite=output.overwrite,
            progress=report,
        )
        fuse_view.show_uncovered(manifest, found)
    if json:
        print_json({"output": str(prepared.output), **manifest.as_json()})
    else:
        fuse_view.show_result(prepared, manifest)


def command_line() -> str:
    """Return the command as it was typed, for the manifest."""
    import shlex

    return shlex.join(["sculpt", *sys.argv[1:]])


def help_text(method: type[Method], examples: Sequence[str]) -> str:
    """Return the help of a method's command: its first sentence, source and runnable examples."""
    import inspect

    first = inspect.cleandoc(method.__doc__ or "").partition("\n\n")[0]
    lines = "".join(f"\n\n    {example}" for example in examples)
    return f"{method.title}: {first}\n\nSource: {method.source}.\n\n**Examples**{lines}"


def _command(method: type[Method]) -> Callable[..., None]:
    """Return the command of a method: one tuned model or several, with curvature or without."""
    groups: dict[str, tuple[type, str]] = {
        "method": (method, method.title),
        **({"curvature": (CalibrationOptions, "Curvature")} if method.uses_curvature else {}),
        "output": (OutputOptions, "Output"),
        "selection": (SelectionOptions, "Selection and disagreements"),
        "run": (RunOptions, "Run"),
    }

    if method.max_models == 1:

        def one(base: BasePath, tuned: TunedPath, json: AsJson = False, **options: object) -> None:
            options.setdefault("curvature", CalibrationOptions())
            run_fuse(base, [tuned], json=json, **options)  # pyright: ignore[reportArgumentType]

        return with_options(**groups)(one)

    def many(base: BasePath, tuned: TunedPaths, json: AsJson = False, **options: object) -> None:
        options.setdefault("curvature", CalibrationOptions())
        run_fuse(base, tuned, json=json, **options)  # pyright: ignore[reportArgumentType]

    return with_options(**groups)(many)


def register(app: typer.Typer) -> None:
    """Add `fuse` (AdaDARE-γ) and one command for each other method."""
    for name, method in METHODS.items():
        if method.max_models == 0:
            continue  # for recipes only
        command = "fuse" if method is AdaDare else name
        app.command(command, help=help_text(method, EXAMPLES.get(command, [])))(_command(method))
