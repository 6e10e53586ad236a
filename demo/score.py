"""How good a checkpoint is: at the target task, and at what it could do before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..evaluate.scores import average, h_score
from .task import Row, batches
from .train import answer_logits

BATCH_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Score:
    """The scores of one model; percentages are in [0, 100].

    Attributes:
        target: Share of the test answers that it gives right, in percent.
        general: Share of the next tokens of held-out prose that it ranks first, in percent.
        perplexity: Of the same prose, per token.
    """

    target: float
    general: float
    perplexity: float

    @property
    def avg(self) -> float:
        """Mean of `general` and `target`."""
        return average([self.general], [self.target])

    @property
    def h_score(self) -> float:
        """Harmonic mean of `general` and `target`."""
        return h_score([self.general], [self.target])


def score_model(
    model: Any, test: Sequence[Row], prose: Sequence[Row], *, advance: Callable[[], None] = lambda: None
) -> Score:
    """Return the model's scores on encoded test examples and prose; `advance` is called after each batch."""
    target, _ = measure(model, test, advance)
    general, loss = measure(model, prose, advance)
    return Score(target=100 * target, general=100 * general, perplexity=math.exp(loss))


def num_score_batches(test: Sequence[Row], prose: Sequence[Row]) -> int:
    """Return how many times `score_model` calls its `advance`."""
    return math.ceil(len(test) / BATCH_ROWS) + math.ceil(len(prose) / BATCH_ROWS)


@torch.inference_mode()
def measure(model: Any, rows: Sequence[Row], advance: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Return the share of right answers and the mean loss per answer token.

    An answer is right if each of its tokens is the likeliest after the true text before it.
    """
    num_right = num_answers = num_tokens = 0
    loss = 0.0
    for batch in batches(rows, BATCH_ROWS):
        logits, tokens, answer = answer_logits(model, batch)
        logits = logits.float()
        wrong = torch.zeros(batch.num_answers, dtype=torch.bool)
        wrong[answer[logits.argmax(-1) != tokens].cpu()] = True
        num_right += int((~wrong).sum())
        num_answers += batch.num_answers
        loss += torch.nn.functional.cross_entropy(logits, tokens, reduction="sum").item()
        num_tokens += len(tokens)
        advance()
    return num_right / num_answers, loss / num_tokens
