"""How good a checkpoint is: at the target task, and at what it could do before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.example import Example
from ..evaluate.scores import average, h_score
from ..predict.likelihood import likelihoods

BATCH_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class DemoScore:
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
    model: Any, test: Sequence[Example], prose: Sequence[Example], *, advance: Callable[[], None] = lambda: None
) -> DemoScore:
    """Return the model's scores on encoded test questions and prose; `advance` is called after each example."""
    target, _ = measure(model, test, advance)
    general, loss = measure(model, prose, advance)
    return DemoScore(target=target, general=general, perplexity=math.exp(loss))


def measure(model: Any, examples: Sequence[Example], advance: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Return the share of right answers, in percent, and the mean loss of a token.

    An answer is right if each of its tokens is the likeliest after the true text before it.
    """

    def passed(count: int) -> None:
        for _ in range(count):
            advance()

    found = likelihoods(model, examples, device=model.device, batch_size=BATCH_ROWS, advance=passed)
    right = 100 * sum(one.num_right for one in found) / sum(example.num_answers for example in examples)
    return right, -math.fsum(one.log_probability for one in found) / sum(one.num_tokens for one in found)
