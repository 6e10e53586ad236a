"""`sculpt lora-merge --weights adaptive`: coefficients learned on a buffer, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..fusion.checkpoint.output.guard import Kind
    from ..learn.continual import Experience
    from ..learn.parts import LinearMerge

ADAPTIVE = "adaptive"
MAX_LENGTH = 512  # tokens of a sample


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """How `--weights adaptive` learns.

    Attributes:
        buffer: JSONL of a few labelled samples: `prompt` and `completion`, `text`, `messages`, or `text` or `image` and
            `label`; `domain` where adapters come one after another.
        buffer_from: Such data of any size, to draw the buffer from by the seed.
        per_class: How many samples of each class of each domain are drawn.
        seeds: How often the buffer and what is random in the merge are drawn, with seeds from --seed on; the weights of
            the first are merged.
        b_max: The most that the shared strength b may be; α = σ(c)·b.
        steps: Steps of learning.
        learning_rate: Of the coefficients.
        model_dtype: Of the model while it learns; auto is float32 on a CPU, the stored dtype elsewhere.
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
    from ..data.encoding import Encoder
    from ..fusion.checkpoint import open_checkpoint
    from ..fusion.checkpoint.output.guard import refuse_output
    from ..fusion.errors import MethodError
    from ..learn.buffer import draw_buffer, read_buffer
    from ..learn.continual import Experience, learn_continually
    from ..learn.merged_model import MergedModel
    from ..learn.training import Learning, learn, score
    from .progress import progress_bar

    data = options.buffer or options.buffer_from
    if data is None or (options.buffer is not None and options.buffer_from is not None):
        raise MethodError(
            "`--weights adaptive` needs `--buffer`, a file of a few labelled samples, or `--buffer-from`, to draw some"
        )
    if options.buffer is not None and options.per_class != 1:
        raise MethodError("`--per-class` has no effect on a `--buffer` that is given; `--buffer-from` draws one")
    if options.learned is not None:
        read = [base, *adapters, *(file for file in (data, options.test) if file is not None)]
        refuse_output(options.learned, read, _kind(), overwrite=overwrite, option="learned")
    learning = Learning(b_max=options.b_max, steps=options.steps, learning_rate=options.learning_rate)
    opened = open_checkpoint(base)
    found = [open_checkpoint(adapter, opened) for adapter in adapters]
    merged = MergedModel(opened, merge, device=device, dtype=options.model_dtype)
    classifies = merged.model.get_output_embeddings() is None
    encoder = Encoder(opened.folder or base, merged.model, max_length=MAX_LENGTH)
    test = read_buffer(options.test, encoder, classifies=classifies) if options.test else None
    runs: list[list[Experience]] = []
    losses: list[list[float]] = []
    seeds = range(merge.seed, merge.seed + max(1, options.seeds))
    with progress_bar("learning", unit="steps") as report:
        for place, seed in enumerate(seeds):

            def told(done: int, total: int, what: str, place: int = place) -> None:
                report(place * total + done, len(seeds) * total, what)

            drawn = draw_buffer(data, options.per_class, seed) if options.buffer_from else None
            buffer = read_buffer(data, encoder, classifies=classifies, numbers=drawn)
            merged.merge = replace(merge, seed=seed)
            if options.continual:
                known = learn_continually(merged, found, buffer, learning, test=test, report=told)
            else:
                outcome = learn(merged, found, buffer, learning, report=told)
                losses.append(list(outcome.losses))
                known = [
                    Experience(
                        domain="all", coefficients=outcome.coefficients, scores={"all": score(merged, test or buffer)}
                    )
                ]
            runs.append(known)
    if options.continual or len(runs) > 1:
        show_experiences(runs)
    first = runs[0][-1]
    _say(adapters, first.coefficients.alpha, first.coefficients.b, losses[0] if losses else [])
    if options.learned is not None:
        _write(options.learned, _as_json(runs, losses, seeds, continual=options.continual), overwrite=overwrite)
    return first.coefficients.alpha


def _as_json(
    runs: Sequence[Sequence[Experience]], losses: Sequence[list[float]], seeds: Sequence[int], *, continual: bool
) -> dict[str, Any]:
    """Return the first run's figures, and those of all seeds where there are several."""

    def of(known: Sequence[Experience], place: int) -> dict[str, Any]:
        if continual:
            figures: dict[str, Any] = {"experiences": [experience.as_json() for experience in known]}
        else:
            scored = known[0].scores["all"]
            figures = {"losses": losses[place], "loss": scored.loss, "accuracy": scored.accuracy}
        return {"coefficients": known[-1].coefficients.as_json(), **figures}

    every = [{"seed": seed, **of(known, place)} for place, (seed, known) in enumerate(zip(seeds, runs, strict=True))]
    return {**of(runs[0], 0), **({"seeds": every} if len(runs) > 1 else {})}


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
