"""A tied model in, the same model with its output vocabulary stored beside its embeddings out."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import Asked, find_model
from ..checkpoint.open import open_whole
from ..checkpoint.output.guard import CHECKPOINT, refuse_output
from ..checkpoint.untied import UntiedSource, untied
from ..methods import Passthrough
from ..plan.plan import make_plan
from ..progress import Progress, silent
from ..record.manifest import Manifest
from .fuse import execute
from .prepared import prepare_plan
from .settings import Settings


def untie(
    model: Asked,
    *,
    output: Path | str,
    command: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Write a tied model with both of its vocabulary matrices, for adapters that train them apart.

    Raises:
        CheckpointError: The model is not tied.
        OutputError: The output exists, lies inside the model, or cannot be written.
    """
    ref, output = find_model(model), Path(output)
    refuse_output(output, [ref], CHECKPOINT, overwrite=overwrite)
    settings = Settings(config_from="base")
    method = Passthrough()
    plan = make_plan([UntiedSource(open_whole(ref))], lambda _: method, settings.request())
    prepared = prepare_plan(plan, output=output, settings=settings, reshape=untied)
    return execute(prepared, command=command, overwrite=overwrite, progress=progress)
