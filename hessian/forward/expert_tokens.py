"""Which tokens the experts of a model are measured on, where that is not what its router sends them.

The model computes what it always does: an expert layer first runs for the tokens, and with the experts, that are to be
measured, which is recorded and thrown away, then as the router says, which is not recorded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...fusion.errors import ModelError
from ...live.privates import routed_experts
from ..measure.recorder import Recorder
from ..measure.row_weights import RowWeights


def measure_experts(model: Any, recorder: Recorder, *, everywhere: bool) -> None:
    """Have every layer of experts of a model recorded with the tokens that count, and no others.

    Args:
        everywhere: Every expert gets all of them, not only those that its router sends it.

    Raises:
        ModelError: The model has none of transformers' own layers of experts.
    """
    layers, name = routed_experts(model), type(model).__name__
    if not layers and everywhere:
        raise ModelError(
            f"`{name}` has no layers of experts that every token could be sent to",
            hint="without `all_experts` an expert is measured on the tokens that its router sends it",
            options=["all_experts"],
        )
    if not layers:
        raise _unknown_tokens(name)

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if recorder.paused:
            return
        hidden, chosen, weights = (*args, *(kwargs[key] for key in list(kwargs)[: 3 - len(args)]))
        if everywhere:
            number: Any = layer.num_experts
            chosen = torch.arange(number, device=chosen.device).expand(*chosen.shape[:-1], number)
            weights = weights.new_zeros(chosen.shape)
        rows = recorder.rows
        if rows.masks:
            hidden, chosen, weights = (value.flatten(0, -2) for value in (hidden, chosen, weights))
            counted = rows.of_rows(len(hidden), shared=False)
            if counted is None:
                raise _unknown_tokens(name)
            places = counted.bool().to(hidden.device)
            hidden, chosen, weights = hidden[places], chosen[places], weights[places]
        recorder.rows = RowWeights((), 1)
        try:
            if len(hidden):
                layer.forward(hidden, chosen, weights)
        finally:
            recorder.rows = rows
        recorder.paused = True

    def after(*_: Any) -> None:
        recorder.paused = False

    for layer in layers:
        layer.register_forward_pre_hook(before, with_kwargs=True)
        layer.register_forward_hook(after, always_call=True)


def _unknown_tokens(name: str) -> ModelError:
    return ModelError(
        f"the experts of `{name}` do not know which tokens belong to a completion",
        hint="`count` all measures the prompts too",
        options=["count"],
    )
