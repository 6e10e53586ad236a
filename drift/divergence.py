"""How far the next tokens of one model are from another's, on data that need no labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import torch
from torch import Tensor

from ..data.batching import collate
from ..data.example import Example
from ..fusion.errors import ModelError

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


def divergences(base: Iterator[Tensor], other: Iterator[Tensor], groups: Sequence[Sequence[Example]]) -> list[Moved]:
    """Return how far each kind of the examples moved, by name.

    Where one model has more rows in its vocabulary, those that both have are compared.

    Args:
        base, other: The logits (n, vocabulary) of what is to be predicted of each group: both saw the very same tokens.

    Raises:
        ModelError: A model's outputs are not finite.
    """
    figures: dict[str, list[tuple[float, int]]] = {_kind(example): [] for group in groups for example in group}
    for group, before, after in zip(groups, base, other, strict=True):
        kinds = [_kind(group[row]) for row in collate(group).wanted.rows.tolist()]
        for kind, found in zip(kinds, _compared(before, after), strict=True):
            figures[kind].append(found)
    return [_moved(kind, found) for kind, found in sorted(figures.items()) if found]


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
