"""How far the next tokens of one model are from another's, on data that need no labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import torch
from torch import Tensor

from ..data.batching import collate
from ..data.example import PADDED, Example
from ..fusion.errors import ModelError
from ..live.logits import logits_at
from ..live.model import LiveModel
from .likelihood import LOGIT_BYTES, batches

ROWS = 64  # of logits, compared at once


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far the next tokens of one kind of data moved.

    Attributes:
        kind: The kind, or the name of the data.
        divergence: KL(base‖other), the mean in nats over the tokens that are to be predicted.
        same: The share of them at which both rank the same token first, in [0, 1].
        num_tokens: How many they are.
    """

    kind: str
    divergence: float
    same: float
    num_tokens: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values, rounded to what a device or a number of threads does not change."""
        return {**vars(self), "divergence": round(self.divergence, 4), "same": round(self.same, 4)}


@torch.inference_mode()
def divergences(
    base: LiveModel,
    other: LiveModel,
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda _examples: None,
) -> list[Moved]:
    """Return how far each kind of the examples moved, in the order of their kinds.

    Both models see the very same tokens. Where one has more rows in its vocabulary, those that both have are compared.

    Raises:
        ModelError: A model predicts no tokens, or its outputs are not finite.
    """
    figures: dict[str, list[tuple[float, int]]] = {kind: [] for kind in dict.fromkeys(map(_kind, examples))}
    texts = [example for example in examples if set(example.inputs) <= set(PADDED)]
    groups = [
        [texts[place] for place in places]
        for places in batches(base.model, texts, batch_size, logit_bytes=LOGIT_BYTES // 2)
    ]
    # Pictures of different sizes make no batch.
    groups += [[example] for example in examples if not set(example.inputs) <= set(PADDED)]
    for group in groups:
        batch = collate(group)
        wanted = batch.wanted
        first, second = (
            logits_at(live.model, batch.inputs_on(live.device, live.model.dtype), wanted.where).float().to("cpu")
            for live in (base, other)
        )
        kinds = [_kind(group[row]) for row in wanted.rows.tolist()]
        for kind, found in zip(kinds, _compared(first, second), strict=True):
            figures[kind].append(found)
        advance(len(group))
    return [_moved(kind, found) for kind, found in figures.items() if found]


def _kind(example: Example) -> str:
    return example.kind or ""


def _compared(base: Tensor, other: Tensor) -> list[tuple[float, int]]:
    """Return KL(base‖other) of each row of logits, and whether both rank the same token first."""
    size = min(base.shape[1], other.shape[1])
    found: list[tuple[float, int]] = []
    for rows in zip(base.split(ROWS), other.split(ROWS), strict=True):
        before, after = (logits[:, :size].log_softmax(-1) for logits in rows)
        apart = torch.where(before == -torch.inf, 0, before.exp() * (before - after)).sum(-1)
        if not bool(torch.isfinite(apart).all()):
            raise ModelError("the outputs of a model are not finite, so they cannot be compared")
        found += zip(apart.tolist(), (before.argmax(-1) == after.argmax(-1)).int().tolist(), strict=True)
    return found


def _moved(kind: str, found: Sequence[tuple[float, int]]) -> Moved:
    return Moved(
        kind=kind,
        divergence=fsum(divergence for divergence, _ in found) / len(found),
        same=sum(same for _, same in found) / len(found),
        num_tokens=len(found),
    )
