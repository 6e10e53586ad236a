"""How likely a model finds what is to be predicted: in batches of like length, logits only where they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.batching import Batch, collate
from ..data.example import Example
from ..fusion.errors import ModelError, Way
from ..live.logits import logits_at

LOGIT_BYTES = 1 << 29  # of the float32 logits of one batch, unless one row alone has more


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What the model makes of the answers of one example.

    Attributes:
        log_probability: Of all their tokens together, natural logarithm.
        num_tokens: How many they are.
        num_first: How many of them the model ranks first.
        num_right: How many answers have none but such tokens.
    """

    log_probability: float
    num_tokens: int
    num_first: int
    num_right: int


@torch.inference_mode()
def likelihoods(
    model: Any,
    examples: Sequence[Example],
    *,
    device: torch.device,
    batch_size: int,
    advance: Callable[[int], None] = lambda _examples: None,
) -> list[Likelihood]:
    """Return the likelihood of what is to be predicted of each example, in their order.

    Raises:
        ModelError: The model's outputs are not finite.
    """
    found: list[Likelihood | None] = [None] * len(examples)
    for places in batches(model, examples, batch_size):
        batch = collate([examples[place] for place in places])
        logits = logits_at(model, batch.inputs_on(device, model.dtype), batch.wanted.where)
        scored = of_logits(logits, batch, [examples[place] for place in places])
        for place, likelihood in zip(places, scored, strict=True):
            found[place] = likelihood
        advance(len(places))
    return [likelihood for likelihood in found if likelihood is not None]


def of_logits(logits: Tensor, batch: Batch, examples: Sequence[Example]) -> list[Likelihood]:
    """Return the likelihood of each example of a batch, from the logits (n, vocabulary) of what is to be predicted.

    Raises:
        ModelError: They are not finite.
    """
    wanted = batch.wanted
    tokens = wanted.tokens.to(logits.device)
    own = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0].cpu().double()
    if not bool(torch.isfinite(own).all()):
        raise ModelError(
            "the model's outputs are not finite",
            ways=[Way(option="dtype", value="float32", effect="computes with a wider range")],
        )
    first = (logits.argmax(-1) == tokens).cpu()
    found = []
    for index, example in enumerate(examples):
        mine = wanted.rows == index
        wrong = wanted.answers[mine & ~first].unique()
        found.append(
            Likelihood(
                log_probability=float(own[mine].sum()),
                num_tokens=int(mine.sum()),
                num_first=int(first[mine].sum()),
                num_right=example.num_answers - len(wrong),
            )
        )
    return found


def batches(
    model: Any, examples: Sequence[Example], batch_size: int, *, logit_bytes: int = LOGIT_BYTES
) -> Iterator[list[int]]:
    """Yield numbers of examples of like length together, as many as the batch and its logits have room for.

    Raises:
        ModelError: The model predicts no tokens.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"`{type(model).__name__}` predicts no tokens")
    room = logit_bytes // (4 * head.weight.shape[0])
    order = sorted(range(len(examples)), key=lambda k: (examples[k].num_tokens, k))
    batch: list[int] = []
    wanted = 0
    for place in order:
        more = examples[place].num_predicted
        if batch and (len(batch) == batch_size or wanted + more > room):
            yield batch
            batch, wanted = [], 0
        batch.append(place)
        wanted += more
    if batch:
        yield batch
