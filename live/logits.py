"""Logits where they are wanted only: a fifth of a small model's work, and most of its memory, is the output layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..fusion.errors import ModelError
from .failures import plain_failures


def logits_at(model: Any, inputs: Mapping[str, Tensor], where: Tensor) -> Tensor:
    """Return the logits (n, vocabulary) of the positions `where` (rows, length) is true, row by row.

    The model's own forward is run, so that what it does to its logits is done.

    Raises:
        ModelError: It has no output layer.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"`{type(model).__name__}` predicts no tokens")

    def select(_module: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        return (hidden[where.to(hidden.device)], *arguments[1:])

    hook = head.register_forward_pre_hook(select)
    try:
        with plain_failures(model):
            return model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
