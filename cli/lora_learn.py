"""`sculpt lora-merge --weights adaptive`: coefficients learned on a buffer, and how they look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..learn.continual import Experience
    from ..learn.parts import LinearMerge

ADAPTIVE = "adaptive"
MAX_LENGTH = 512  # tokens of a sample


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """How `--weights adaptive` learns.

    Attributes:
        buffer: JSONL of a few labelled samples: `prompt` and `completion`, `text`, `messages`, or `text` and `label`;
            `domain` where adapters come one after another.
        b_max: The most that the shared strength b may be; α = σ(c)·b.
        steps: Steps of learning.
        learning_rate: Of the coefficients.
        test: Samples to score, with their `domain`. Default: the buffer.
        learned: JSON file for what was learned.
    """

    buffer: Path | None = None
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
    test: Path | None = None
    learned: Path | None = None


def learn_weights(
    base: Path, adapters: Sequence[Path], merge: LinearMerge, options: LearnOptions, *, device: str
) -> tuple[float, ...]:
    """Return the learned α of the adapters, after saying how they came about."""
    from ..data.encoding import Encoder
    from ..fusion.checkpoint import open_checkpoint
    from ..fusion.errors import MethodError
    from ..learn.buffer import read_buffer
    from ..learn.continual import learn_continually
    from ..learn.merged_model import MergedModel
    from ..learn.training import Learning, learn, score
    from .console import progress_bar

    if options.buffer is None:
        raise MethodError("`--weights adaptive` needs `--buffer`, a file of a few labelled samples")
    learning = Learning(b_max=options.b_max, steps=options.steps, learning_rate=options.learning_rate)
    opened = open_checkpoint(base)
    found = [open_checkpoint(adapter, opened) for adapter in adapters]
    merged = MergedModel(opened, merge, device=_device(device))
    classifies = merged.model.get_output_embeddings() is None
    encoder = Encoder(opened.folder or base, merged.model, max_length=MAX_LENGTH)
    buffer = read_buffer(options.buffer, encoder, classifies=classifies)
    test = read_buffer(options.test, encoder, classifies=classifies) if options.test else None
    with progress_bar("learning", unit="steps") as report:
        if options.continual:
            known = learn_continually(merged, found, buffer, learning, test=test, report=report)
            losses: list[float] = []
            learned: dict[str, Any] = {"experiences": [experience.as_json() for experience in known]}
            coefficients = known[-1].coefficients
        else:
            known = []
            outcome = learn(merged, found, buffer, learning, report=report)
            coefficients, losses = outcome.coefficients, list(outcome.losses)
            scored = score(merged, test or buffer)
            learned = {"losses": losses, "loss": scored.loss, "accuracy": scored.accuracy}
    if known:
        show_experiences(known)
    _say(adapters, coefficients.alpha, coefficients.b, losses)
    if options.learned is not None:
        _write(options.learned, {"coefficients": coefficients.as_json(), **learned})
    return coefficients.alpha


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _say(adapters: Sequence[Path], alpha: Sequence[float], b: float, losses: Sequence[float]) -> None:
    from .console import say

    weights = ", ".join(f"{adapter.name} {weight:.3f}" for adapter, weight in zip(adapters, alpha, strict=True))
    say(f"learned: {weights}; b {b:.3f}")
    say(f"the same merge again: --weights {','.join(map(repr, alpha))}")
    if losses:
        say(f"loss of the buffer {losses[0]:.4f} → {losses[-1]:.4f}")


def show_experiences(known: Sequence[Experience]) -> None:
    """Print after each experience the coefficients and the accuracy on every domain so far."""
    from .console import table

    domains = [experience.domain for experience in known]
    rows = []
    for experience in known:
        scores = [experience.scores.get(name) for name in domains]
        rows.append(
            [
                experience.domain,
                " ".join(f"{weight:.2f}" for weight in experience.coefficients.alpha),
                f"{experience.coefficients.b:.2f}",
                *(f"{found.accuracy:.1%}" if found else "" for found in scores),
                f"{experience.accuracy:.1%}",
            ]
        )
    table("after each experience", ["new domain", "α", "b", *domains, "mean"], rows)


def _write(file: Path, content: dict[str, Any]) -> None:
    import json

    from ..fusion.errors import os_error

    try:
        file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise os_error(error, file) from error
