"""Learning α on the buffer, and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.batching import Batch
from ..fusion.checkpoint import Source
from ..fusion.errors import DataError, MethodError
from ..fusion.progress import Progress, silent
from ..live.failures import plain_failures
from ..live.logits import logits_at
from .buffer import BufferSample, batches
from .coefficients import Coefficients, Learnable
from .merged_model import MergedModel

BATCH_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How coefficients are learned.

    Attributes:
        b_max: The most that b may be; at 1 every α lies below 1.
        steps: Steps of Adam, each on the whole buffer.
        learning_rate: Of c and b_raw.
    """

    b_max: float = 3.0
    steps: int = 200
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise MethodError(f"`steps` must be at least 0, got {self.steps}", options=["steps"])
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise MethodError(f"the learning rate must be above 0, got {self.learning_rate:g}")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What came out.

    Attributes:
        losses: Of the buffer, before each step.
    """

    coefficients: Coefficients
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class BufferScore:
    """Of a set of samples.

    Attributes:
        loss: Mean cross-entropy of what is to be predicted.
        accuracy: Share of the samples that are predicted right as a whole, in [0, 1].
    """

    loss: float
    accuracy: float


def predictions(model: Any, batch: Batch, labels: Sequence[int | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of each prediction, what is right, and which sample it belongs to.

    Args:
        labels: The classes of the samples, of a model that predicts those; else None for each.
    """
    inputs = batch.inputs_on(model.device, model.dtype)
    if None not in labels:
        right = torch.tensor(labels, device=model.device)
        with plain_failures(model):
            logits = model(**inputs).logits
        return logits, right, torch.arange(len(labels), device=model.device)
    wanted = batch.wanted
    logits = logits_at(model, inputs, wanted.where)
    return logits, wanted.tokens.to(logits.device), wanted.rows.to(logits.device)


def learn(
    merged: MergedModel,
    adapters: Sequence[Source],
    samples: Sequence[BufferSample],
    learning: Learning,
    *,
    report: Progress = silent,
) -> Learned:
    """Return the coefficients of the adapters that suit the samples; the model is left with them.

    Everything else is frozen. Each step's loss is the mean over the samples, each the mean over its tokens, so that
    long answers do not count for more.
    """
    if not samples:
        raise DataError("the buffer is empty")
    merged.use(adapters)
    learnable = Learnable(len(adapters), learning.b_max)
    optimizer = torch.optim.Adam(learnable.parameters, lr=learning.learning_rate)
    losses = []
    for step in range(learning.steps):
        alpha = learnable.alpha()
        merged.set(alpha.tolist())
        merged.start_gradient()
        loss = 0.0
        for batch, classes in batches(samples, BATCH_ROWS, merged.model.config):
            logits, labels, rows = predictions(merged.model, batch, classes)
            each = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
            counts = torch.bincount(rows, minlength=batch.num_samples).clamp(min=1)
            part = torch.sum(each / counts[rows]) / len(samples)
            part.backward()
            loss += float(part.detach())
        alpha.backward(merged.gradient)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        report(step + 1, learning.steps, f"loss {loss:.3f}")
    found = learnable.value()
    merged.set(found.alpha)
    return Learned(coefficients=found, losses=tuple(losses))


@torch.no_grad()
def score(merged: MergedModel, samples: Sequence[BufferSample]) -> BufferScore:
    """Return how well the model, with the weights that it has, does on samples."""
    loss, right = 0.0, 0
    for batch, classes in batches(samples, BATCH_ROWS, merged.model.config):
        logits, labels, rows = predictions(merged.model, batch, classes)
        each = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        size = batch.num_samples
        counts = torch.bincount(rows, minlength=size).clamp(min=1)
        loss += float(torch.sum(each / counts[rows]))
        wrong = torch.bincount(rows[logits.argmax(-1) != labels], minlength=size)
        right += int((wrong == 0).sum())
    return BufferScore(loss=loss / len(samples), accuracy=right / len(samples))
