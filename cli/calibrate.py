"""`sculpt calibrate` and `sculpt hessian`: measure curvature, put files of it together, look into them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..hessian.options import CalibrationOptions
from .flags import FlagGroup, with_options
from .options import KINDS, SIZE, AsJson, named_kinds, refuse_missing

if TYPE_CHECKING:
    from ..hessian import DiagonalHessian

Tuned = Annotated[Path, typer.Argument(help="The fine-tuned model: a folder that transformers can load.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
MAX_NAMED = 8  # experts in one sentence


def _only_one(given: list[Path] | None) -> Path | None:
    from ..fusion.errors import DataError

    if given and len(given) > 1:
        raise DataError(
            f"a model is measured on one data set, and there are {len(given)}",
            hint="`sculpt hessian merge` adds up statistics of several",
        )
    return given[0] if given else None


CALIBRATION = FlagGroup(
    of=CalibrationOptions,
    convert={"data": _only_one, "kinds": named_kinds},
    options={
        "data": Annotated[list[Path] | None, typer.Option("--data", metavar="PATH")],
        "kinds": KINDS,
        "only_changed": Annotated[Path | None, typer.Option(metavar="BASE")],
        "memory": SIZE,
    },
)


@with_options(options=CALIBRATION)
def calibrate_command(
    tuned: Tuned,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: TUNED-hessian.safetensors."),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on with a run that was killed, a few seconds before its end.")
    ] = True,
    report: Annotated[bool, typer.Option("--report", help="Show the spread of each layer's diagonal.")] = False,
    overwrite: Overwrite = False,
    json: AsJson = False,
    *,
    options: CalibrationOptions,
) -> None:
    """Measure the curvature of a fine-tuned model on samples of its task: Σx² for each linear weight, block by block.

    Each weight is read once, and one block is in memory at a time. Under `accelerate launch -m sculpt calibrate …`, the
    processes share the samples.

    `sculpt fuse BASE TUNED` uses the file that was written beside TUNED.

    **Examples**

        sculpt calibrate sft/

        sculpt calibrate sft/ --data train.jsonl -o hessian.safetensors --report

        sculpt calibrate base/ --data general --full '*' -o general.safetensors

        sculpt calibrate sft/ --data train.jsonl --only-changed base/ --samples 256

        sculpt calibrate llava-sft/ --data images-and-text.jsonl --device cuda --memory 8GB
    """
    from ..fusion.checkpoint import find_model
    from ..hessian import calibrate
    from ..hessian.store.found import default_file
    from .console import say
    from .progress import progress_bar

    models = [model for model in (tuned, options.only_changed) if model is not None]
    refuse_missing(models, [Path(file) for file in (options.data, options.media) if file is not None])
    output = output or default_file(find_model(tuned))
    if options.data is None:
        say("calibrating on the text that ships with sculpt (--data names your own)")
    with progress_bar("calibrating", unit="blocks") as shown:
        hessian = calibrate(tuned, options, output=output, overwrite=overwrite, resume=resume, progress=shown)
    _show(hessian, output, report=report, json=json)


def merge_command(
    files: Annotated[list[Path], typer.Argument(help="Statistics of one model, on different data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Add up statistics of one model on different data: the result is as if it had been calibrated on all of them.

    **Examples**

        sculpt hessian merge first.safetensors second.safetensors -o both.safetensors
    """
    from ..fusion.checkpoint.output.guard import refuse_output
    from ..fusion.checkpoint.output.workspace import Workspace
    from ..hessian import DiagonalHessian
    from ..hessian.store.file_format import STATISTICS

    refuse_output(output, files, STATISTICS, overwrite=overwrite)
    first, *others = [DiagonalHessian.load(file) for file in files]
    with Workspace(output, made_by="hessian merge") as workspace:
        workspace.empty()
        merged = first.merge(others, gram_file=workspace.folder / "grams.bin")
        merged.write(workspace.payload)
        workspace.publish(STATISTICS.may_replace if overwrite else None)
        _show(merged, output, report=False, json=json)


def report_command(
    file: Annotated[Path, typer.Argument(help="Statistics that `sculpt calibrate` wrote.")], json: AsJson = False
) -> None:
    """Show the spread of each layer's diagonal, its dead inputs, and the share of tokens that reached it.

    **Examples**

        sculpt hessian report hessian.safetensors

        sculpt hessian report hessian.safetensors --json
    """
    from ..hessian import DiagonalHessian

    _show(DiagonalHessian.load(file), file, report=True, json=json)


def _show(hessian: DiagonalHessian, path: Path, *, report: bool, json: bool) -> None:
    from .console import print_json, say

    if json:
        print_json(_as_json(hessian, path, report=report))
        return
    if report:
        _show_report(hessian)
    about = hessian.provenance
    reasons: dict[str, int] = {}
    for reason in hessian.why_missing.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    for reason, number in sorted(reasons.items(), key=lambda entry: -entry[1]):
        say(f"{number} tensor{'s' if number > 1 else ''} without statistics: {reason}")
    _warn_of_starved(hessian)
    say(
        f"{path}: {len(hessian)} tensors of {about.model} ({about.model_class}), "
        f"{about.num_samples} samples and {about.num_tokens} tokens of {about.data}"
    )


def _warn_of_starved(hessian: DiagonalHessian) -> None:
    from ..hessian.store.report import starved_experts
    from .console import warn

    starved = starved_experts(hessian)
    if starved:
        unreached = sum(not expert.num_tokens for expert in starved)
        named = ", ".join(f"`{expert.name}` ({expert.num_tokens})" for expert in starved[:MAX_NAMED])
        more = f" and {len(starved) - MAX_NAMED} more" if starved[MAX_NAMED:] else ""
        warn(
            f"{len(starved)} experts saw less than a tenth of the tokens of an average one, {unreached} of "
            f"them none: {named}{more}. More samples of more kinds reach more experts; `--all-experts` sends every "
            "token to all"
        )


def _show_report(hessian: DiagonalHessian) -> None:
    from ..hessian.store.report import report
    from .console import table

    rows = [
        [
            entry.name,
            str(entry.num_inputs),
            f"{entry.median:.3g}",
            f"{entry.spread:.3g}",
            str(entry.dead),
            f"{entry.share:.1%}",
        ]
        for entry in report(hessian)
    ]
    note = "H = 2·Σx² + 1; spread is its 99th over its 1st percentile; a dead input was zero throughout"
    table("curvature", ["tensor", "inputs", "median H", "spread", "dead", "tokens"], rows, note=note)


def _as_json(hessian: DiagonalHessian, path: Path, *, report: bool) -> dict[str, Any]:
    from dataclasses import asdict

    content: dict[str, Any] = {
        "output": str(path),
        "provenance": asdict(hessian.provenance),
        "num_tensors": len(hessian),
        "why_missing": dict(hessian.why_missing),
    }
    from ..hessian.store import report as reports

    content["starved_experts"] = [asdict(expert) for expert in reports.starved_experts(hessian)]
    if report:
        content["tensors"] = [asdict(entry) for entry in reports.report(hessian)]
    return content


def register(app: typer.Typer) -> None:
    """Add `calibrate` and the group `hessian`."""
    app.command("calibrate")(calibrate_command)
    group = typer.Typer(no_args_is_help=True, help="Merge and inspect files that `sculpt calibrate` wrote.")
    group.command("merge")(merge_command)
    group.command("report")(report_command)
    app.add_typer(group, name="hessian")
