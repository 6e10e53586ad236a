"""Every token to every expert: what an expert would be given, if the router sent it everything, is summed.

The model computes what it always does: an expert layer first runs with all experts for all tokens, which is recorded
and thrown away, then as the router says, which is not recorded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...fusion.errors import ModelError
from ...live.privates import routed_experts
from ..measure.recorder import Recorder


def send_to_all_experts(model: Any, recorder: Recorder) -> None:
    """Have every layer of experts of a model recorded with all tokens.

    Raises:
        ModelError: The model has none of transformers' own layers of experts.
    """
    layers = routed_experts(model)
    if not layers:
        raise ModelError(
            f"`{type(model).__name__}` has no layers of experts that every token could be sent to",
            hint="without `all_experts` an expert is measured on the tokens that its router sends it",
            options=["all_experts"],
        )

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if recorder.paused:
            return
        hidden, chosen, weights = (*args, *(kwargs[key] for key in list(kwargs)[: 3 - len(args)]))
        number: Any = layer.num_experts
        everywhere = torch.arange(number, device=chosen.device).expand(*chosen.shape[:-1], number)
        layer.forward(hidden, everywhere, weights.new_zeros(everywhere.shape))
        recorder.paused = True

    def after(*_: Any) -> None:
        recorder.paused = False

    for layer in layers:
        layer.register_forward_pre_hook(before, with_kwargs=True)
        layer.register_forward_hook(after, always_call=True)
