"""`sculpt lora-merge --weights adaptive`: coefficients learned on a buffer, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..fusion.checkpoint.output.guard import Kind
    from ..learn.continual import Experience
    from ..learn.parts import LinearMerge

ADAPTIVE = "adaptive"


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """How `--weights adaptive` learns.

    Attributes:
        buffer: JSONL of a few labelled samples: `prompt` and `completion`, `text`, `messages`, or `text` or `image` and
            `label`; with a `domain` if adapters come one after another.
        buffer_from: Data of any size from which the buffer is drawn, by the seed.
        per_class: Number of samples to draw of each class of each domain.
        seeds: Number of seeds, from --seed on, for the buffer and random methods. The weights of the first one are
            merged.
        b_max: Upper limit of the shared strength b; α = σ(c)·b.
        steps: Steps of learning.
        learning_rate: Learning rate of the coefficients.
        model_dtype: Dtype of the model while it learns; auto: float32 on a CPU, elsewhere the stored dtype.
        test: Samples to score, with their `domain`. Default: the buffer.
        learned: JSON file for what was learned.
    """

    buffer: Path | None = None
    buffer_from: Path | None = None
    per_class: int = 1
    seeds: int = 1
    b_max: float = 3.0
    steps: int = 200
    learning_rate: float = 0.05
    continual: Annotated[
        bool,
        typer.Option(
            "--continual",
            help="Take the adapters one after another, and score every domain so far after each.",
            rich_help_panel="Learned weights",
        ),
    ] = False
    model_dtype: str = "auto"
    test: Path | None = None
    learned: Path | None = None


def learn_weights(
    base: Path, adapters: Sequence[Path], merge: LinearMerge, options: LearnOptions, *, device: str, overwrite: bool
) -> tuple[float, ...]:
    """Return the learned α of the adapters, after saying how they came about."""
    from ..fusion.checkpoint.output.guard import refuse_output
    from ..fusion.errors import MethodError
    from .console import quiet_libraries
    from .progress import progress_bar

    data = options.buffer or options.buffer_from
    if data is None:
        raise MethodError(
            "`--weights adaptive` needs `--buffer`, a file of a few labelled samples, or `--buffer-from`, to draw some"
        )
    if options.learned is not None:
        read = [base, *adapters, *(file for file in (data, options.test) if file is not None)]
        refuse_output(options.learned, read, _kind(), overwrite=overwrite, option="learned")
    quiet_libraries()
    from ..learn.training import Learning
    from ..learn.weights import learn_weights as learned_weights

    with progress_bar("learning", unit="steps") as report:
        found = learned_weights(
            base,
            adapters,
            buffer=options.buffer,
            buffer_from=options.buffer_from,
            per_class=options.per_class,
            merge=merge,
            learning=Learning(b_max=options.b_max, steps=options.steps, learning_rate=options.learning_rate),
            seeds=options.seeds,
            continual=options.continual,
            test=options.test,
            device=device,
            dtype=options.model_dtype,
            progress=report,
        )
    if options.continual or len(found.runs) > 1:
        show_experiences(found.runs)
    _say(adapters, found.alpha, found.b, found.losses[0] if found.losses else [])
    if options.learned is not None:
        _write(options.learned, found.as_json(), overwrite=overwrite)
    return found.alpha


def _say(adapters: Sequence[Path], alpha: Sequence[float], b: float, losses: Sequence[float]) -> None:
    from .console import say

    weights = ", ".join(f"{adapter.name} {weight:.3f}" for adapter, weight in zip(adapters, alpha, strict=True))
    say(f"learned: {weights}; b {b:.3f}")
    say(f"the same merge again: --weights {','.join(map(repr, alpha))}")
    if losses:
        say(f"loss of the buffer {losses[0]:.4f} → {losses[-1]:.4f}")


def show_experiences(runs: Sequence[Sequence[Experience]]) -> None:
    """Print after each experience the coefficients and the accuracy on every domain so far, means over the runs."""
    from .console import table

    def cell(values: Sequence[float], digits: int, percent: str = "") -> str:
        deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{fmean(values):.{digits}f}{deviation}{percent}"

    domains = [experience.domain for experience in runs[0]]
    rows = []
    for same in zip(*runs, strict=True):
        first = same[0]
        alphas = zip(*(experience.coefficients.alpha for experience in same), strict=True)
        scored = [
            cell([100 * experience.scores[name].accuracy for experience in same], 1, "%")
            if name in first.scores
            else ""
            for name in domains
        ]
        rows.append(
            [
                first.domain,
                ", ".join(cell(weights, 2) for weights in alphas),
                cell([experience.coefficients.b for experience in same], 2),
                *scored,
                cell([100 * experience.accuracy for experience in same], 1, "%"),
            ]
        )
    table("after each experience", ["new domain", "α", "b", *domains, "mean"], rows, aside=True)


def _kind() -> Kind:
    from ..fusion.checkpoint.output.guard import file_kind

    return file_kind("file of learned weights", b'{\n "coefficients"')


def _write(file: Path, content: dict[str, Any], *, overwrite: bool) -> None:
    import json

    from ..fusion.checkpoint.output.workspace import write_file

    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_file(
        file,
        lambda path: path.write_text(text, encoding="utf-8"),
        made_by="lora-merge",
        may_replace=_kind().may_replace if overwrite else None,
    )
