"""A short, plain fine-tune of every weight: what the demo makes a model forget by."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.batching import Batch, collate
from ..data.example import Example
from ..live.logits import logits_at

WARMUP = 0.1
WINDOW_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class FullTraining:
    """The settings of a run: AdamW, linear warm-up over a tenth, cosine to 0, gradients clipped at norm 1.

    Attributes:
        steps: Optimiser steps.
        batch_size: Examples a step.
        learning_rate: At its peak.
        max_minutes: Where the time is up before the steps, the schedule runs to its end with the clock; None: no limit.
            A run that is cut by it depends on the machine's speed.
        seed: Of the order of examples.
    """

    steps: int
    batch_size: int
    learning_rate: float
    max_minutes: float | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class FullTrained:
    """What a run did: steps taken, tokens seen, seconds, and the mean loss of its last tenth."""

    steps: int
    num_tokens: int
    seconds: float
    final_loss: float


def fine_tune(
    model: Any,
    rows: Sequence[Example],
    training: FullTraining,
    *,
    compute: torch.dtype,
    optimizer: Callable[[Iterable[Any]], Any] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> FullTrained:
    """Train all weights of the float32 model in place, on the answers alone, and say what was done.

    Args:
        compute: The type of the matrix products; weights, gradients and the optimiser's state stay float32.
        optimizer: Makes one of the parameters, in place of AdamW without weight decay.
        advance: Called after each step.
    """
    order = _batches(rows, training)
    if optimizer is None:
        steps: Any = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=0.0, fused=True)
    else:
        steps = optimizer(model.parameters())
    model.train()
    losses: list[float] = []
    num_tokens, start = 0, time.monotonic()
    for step in range(training.steps):
        spent = (time.monotonic() - start) / (60 * training.max_minutes) if training.max_minutes else 0.0
        if spent >= 1:
            break
        progress = max(step / training.steps, spent)
        for group in steps.param_groups:
            group["lr"] = training.learning_rate * _schedule(progress)
        batch = next(order)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=compute == torch.bfloat16):
            loss = answer_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        steps.zero_grad(set_to_none=True)
        losses.append(loss.item())
        num_tokens += batch.num_tokens
        advance()
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return FullTrained(
        steps=len(losses),
        num_tokens=num_tokens,
        seconds=time.monotonic() - start,
        final_loss=sum(last) / len(last) if last else math.nan,
    )


def answer_loss(model: Any, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the answer tokens."""
    wanted = batch.wanted
    logits = logits_at(model, batch.inputs_on(model.device), wanted.where)
    return torch.nn.functional.cross_entropy(logits.float(), wanted.tokens.to(logits.device))


def _schedule(progress: float) -> float:
    """Return the share of the peak learning rate at a progress in [0, 1)."""
    if progress < WARMUP:
        return (progress + 0.01) / (WARMUP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def _batches(rows: Sequence[Example], training: FullTraining) -> Iterator[Batch]:
    """Yield batches without end, every row once before any comes again.

    Within a window of some random batches the rows are sorted by length: less padding saves a quarter of the work.
    """
    generator = random.Random(training.seed)
    size, window = training.batch_size, training.batch_size * WINDOW_BATCHES
    while True:
        order = list(rows)
        generator.shuffle(order)
        for start in range(0, len(order) - size + 1, window):
            near = sorted(order[start : start + window], key=lambda row: row.length)
            cuts = list(range(0, len(near) - size + 1, size))
            generator.shuffle(cuts)
            for cut in cuts:
                yield collate(near[cut : cut + size])
