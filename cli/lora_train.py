"""`sculpt lora-train`: an adapter from a data file, trained so that the base is not forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..training.settings import AdapterMethod, Schedule
from .flags import FlagGroup, with_options
from .options import AsJson, BasePath, refuse_missing

if TYPE_CHECKING:
    from ..training.train import Trained

MAX_ROWS = 12  # of the log that are shown


def train_command(
    base: BasePath,
    data: Annotated[
        Path,
        typer.Option(help="JSON, CSV, Parquet or text: `prompt` and `completion`, `messages` or `text`; with images."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter.")],
    method: AdapterMethod,
    schedule: Schedule,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from the checkpoints of a run that was killed.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output of sculpt.")] = False,
    json: AsJson = False,
) -> None:
    """Train a LoRA adapter that forgets little (LoRASculpt), or an ordinary one to compare with.

    After a warm-up only the largest entries of A and B are kept, and a regulariser protects the weights that the base
    needs. Only completions are learned: of `messages` the last one of the assistant, of plain text everything. It uses
    transformers' Trainer and PEFT, and under `accelerate launch` several devices.
    It needs `pip install 'checkpoint-sculpt[train]'`.

    **Examples**

        sculpt lora-train base/ --data train.jsonl -o adapter/

        sculpt lora-train base/ --data train.jsonl -o adapter/ --rank 64 --density 0.05 --epochs 1 --warmup-steps 50

        sculpt lora-train llava/ --data images-and-text.jsonl -o adapter/ --connector '*multi_modal_projector*'

        sculpt lora-train base/ --data train.jsonl -o plain/ --method lora
    """
    refuse_missing([base], [data])
    from ..training.together import join
    from ..training.train import train_adapter
    from .console import print_json, quiet_libraries
    from .fuse import command_line
    from .progress import progress_bar

    quiet_libraries()
    with progress_bar("training", unit="steps") as report:
        trained = train_adapter(
            base,
            data=data,
            output=output,
            method=method,
            schedule=schedule,
            resume=resume,
            command=command_line(),
            overwrite=overwrite,
            progress=report,
        )
    if not join(schedule.device).is_first:
        return
    if json:
        print_json(trained.as_json())
    else:
        show(trained)


def show(trained: Trained) -> None:
    """Print how the loss went, and what was written."""
    from .console import count, say, table

    names = {
        "step": "step",
        "loss": "loss",
        "loss_task": "task",
        "cmr": "CMR",
        "connector": "connector",
        "l2": "L2",
        "orth": "orth",
        "density": "BA dense",
        "term_share": "time of it",
    }
    log = trained.log
    keys = [key for key in names if any(key in entry for entry in log)]
    every = max(1, -(-len(log) // MAX_ROWS))
    shown = [entry for place, entry in enumerate(log) if place % every == 0 or place == len(log) - 1]

    def cell(key: str, entry: dict[str, float]) -> str:
        if key not in entry:
            return ""
        form = {"step": ".0f", "density": ".1%", "term_share": ".1%"}.get(key, ".4g")
        return f"{entry[key]:{form}}"

    table(
        f"training, {trained.method}",
        [names[key] for key in keys],
        [[cell(key, e) for key in keys] for e in shown],
        aside=True,
    )
    if trained.left_out:
        say(f"{trained.left_out} samples had nothing to predict and were left out")
    density = "" if trained.density is None else f", {trained.density:.1%} of B·A"
    say(
        f"wrote {trained.output}: {trained.num_modules} modules, {count(trained.num_parameters)} parameters{density}; "
        f"{trained.steps} steps on {trained.num_samples} samples in {trained.seconds:.0f} s"
    )


def register(app: typer.Typer) -> None:
    """Add `lora-train`."""
    groups = {
        "method": FlagGroup(of=AdapterMethod, panel="Method"),
        "schedule": FlagGroup(of=Schedule, panel="Training"),
    }
    app.command("lora-train", help=train_command.__doc__)(with_options(**groups)(train_command))
