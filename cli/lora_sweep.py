"""`sculpt lora-sweep`: settings of a training, one at a time, by what the adapters score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..training.settings import AdapterMethod, Schedule
from .evaluate import SuiteFile
from .flags import FlagGroup, with_options
from .options import AsJson, BasePath, refuse_missing

HELP = """Train an adapter for each value of a setting, score them all, and show a table and a chart.

One setting is varied at a time; the others stay as given. The adapters stay in the output folder. If you run a sweep
again, after an interruption or with more values, it trains only the missing ones.

**Examples**

    sculpt lora-sweep base/ --data train.jsonl --suite suite.yaml --vary alpha=1e-4,1e-3,1e-2 -o sweep/

    sculpt lora-sweep base/ --data train.jsonl --suite suite.yaml --vary omega=0.5,1,2 --vary density=0.05,0.1,0.2 \\
      --seeds 3 -o sweep/
"""


def sweep_command(
    base: BasePath,
    data: Annotated[Path, typer.Option(help="As for `sculpt lora-train`.")],
    suite: SuiteFile,
    vary: Annotated[
        list[str],
        typer.Option(help="A setting and its values, such as `alpha=1e-4,1e-3`, by the name of its flag; repeatable."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for adapters, table and chart.")],
    seeds: Annotated[int, typer.Option(help="Number of seeds, from --seed on, to train with.")] = 1,
    json: AsJson = False,
    *,
    method: AdapterMethod,
    schedule: Schedule,
) -> None:
    """Train, score, show and write."""
    from .console import print_json, quiet_libraries, say, table
    from .progress import progress_bar

    refuse_missing([base], [data, suite])
    quiet_libraries()
    from ..evaluate.resume import files_of
    from ..evaluate.suite import read_suite
    from ..evaluate.training_sweep import draw, parse_settings, sweep_training, table_of
    from ..fusion.checkpoint.output.guard import refuse_inputs, refuse_output
    from ..fusion.errors import ModelError
    from ..fusion.picture import PICTURE
    from ..fusion.table import refuse_tables

    read = read_suite(suite)
    varied = parse_settings(vary, (method, schedule))
    inputs = [base, data, suite, *files_of(read)]
    tables = [output / f"sweep.{ending}" for ending in ("csv", "md", "tex")]
    pictures = [output / f"sweep.{ending}" for ending in ("png", "svg")]
    refuse_inputs(output, inputs)
    refuse_tables(tables, inputs, overwrite=True)  # of the sweep that goes on
    for picture in pictures:
        refuse_output(picture, inputs, PICTURE, overwrite=True)
    with progress_bar("training and scoring", unit="adapters") as report:
        trials = sweep_training(
            base,
            data=data,
            suite=read,
            settings=(method, schedule),
            varied=varied,
            seeds=range(schedule.seed, schedule.seed + max(1, seeds)),
            output=output,
            progress=report,
        )
    found = table_of(trials)
    for file in tables:
        found.write(file, overwrite=True)
    try:
        draw(trials, pictures)
    except ModelError as error:
        say(f"note: {error.message}; {error.hint}")
    if json:
        print_json({"suite": read.name, "rows": [trial.as_json() for trial in trials]})
    else:
        table(read.name, list(found.columns), [list(row) for row in found.rows])
    say(f"wrote table and chart to {output}")


def register(app: typer.Typer) -> None:
    """Add `lora-sweep`."""
    groups = {
        "method": FlagGroup(of=AdapterMethod, panel="Method"),
        "schedule": FlagGroup(of=Schedule, panel="Training"),
    }
    app.command("lora-sweep", help=HELP)(with_options(**groups)(sweep_command))
