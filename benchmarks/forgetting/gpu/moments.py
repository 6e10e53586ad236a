"""What a model's layers see of samples: E[x·xᵀ] of every matrix, and squared gradients, all on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .scoring import Row, batches, head_of, hidden_of
from .stacks import EMBEDDINGS, HEAD, SEEN_WITH, Layout, Stacks, kind_of

IGNORED = -100


def _watched(model: Any) -> Iterator[tuple[str, int, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kind, layer = kind_of(name)
            if kind not in SEEN_WITH and kind != "lm_head":
                yield kind, layer, module


@torch.no_grad()
def moments(model: Any, rows: Sequence[Row], *, answers_alone: bool = False, magnitudes: bool = False) -> Stacks:
    """Return E[x·xᵀ] by whose inputs they are (layers, width, width), float32; or E|x| (layers, width)."""
    total: dict[str, Any] = {}
    counted: dict[str, Tensor] = {}

    def add(kind: str, layer: int, x: Tensor) -> None:
        x = x[counted["where"]].float()
        own = x.abs().sum(0) if magnitudes else x.T @ x
        total.setdefault(kind, {})
        total[kind][layer] = total[kind].get(layer, 0) + own.double()

    def hook(kind: str, layer: int) -> Callable[..., None]:
        return lambda _module, inputs: add(kind, layer, inputs[0])

    handles = [module.register_forward_pre_hook(hook(kind, layer)) for kind, layer, module in _watched(model)]
    count = 0
    try:
        for ids, answers, mask in batches(rows, model.device):
            counted["where"] = (answers != IGNORED) if answers_alone else mask
            count += int(counted["where"].sum())
            add(HEAD, 0, hidden_of(model, ids))
    finally:
        for handle in handles:
            handle.remove()
    return {
        kind: torch.stack([(one / count).float() for _, one in sorted(layers.items())])
        for kind, layers in total.items()
    }


def by_gradients(model: Any, rows: Sequence[Row]) -> Stacks:
    """Return Σ_t ‖g_t‖²·x_t·x_tᵀ, g_t the gradient of a row's mean loss at the outputs, each with trace 1."""
    total: dict[str, Any] = {}
    seen: dict[tuple[str, int], Tensor] = {}

    def keep(kind: str, layer: int) -> Callable[..., None]:
        def hook(_module: Any, inputs: tuple[Tensor, ...], _out: Tensor) -> None:
            seen[kind, layer] = inputs[0].detach()

        return hook

    def add(kind: str, layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, outputs: tuple[Tensor, ...]) -> None:
            x = seen.pop((kind, layer)).flatten(0, 1).float()
            g = outputs[0].flatten(0, 1).float().square().sum(1)
            total.setdefault(kind, {})
            total[kind][layer] = total[kind].get(layer, 0) + (x.T @ (x * g[:, None])).double()

        return hook

    handles: list[Any] = []
    for kind, layer, module in _watched(model):
        handles += [
            module.register_forward_hook(keep(kind, layer)),
            module.register_full_backward_hook(add(kind, layer)),
        ]
    handles.append(model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out.requires_grad_()))
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        for ids, answers, _mask in batches(rows, model.device, tokens=2048):
            (1e3 * _losses(model, ids, answers)).backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
    return {
        kind: torch.stack([(one / one.trace().clamp(min=1e-30)).float() for _, one in sorted(layers.items())])
        for kind, layers in total.items()
    }


def fisher(model: Any, rows: Sequence[Row], layout: Layout) -> Stacks:
    """Return E[g²] of every parameter over the rows, each with its mean loss."""
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in model.named_parameters()}
    for row in rows:
        for ids, answers, _mask in batches([row], model.device):
            _losses(model, ids, answers).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                grad = parameter.grad.float()
                total[name].addcmul_(grad, grad)
                parameter.grad = None
    return {k: v / len(rows) for k, v in layout.stacked(total, model.device).items()}


def _losses(model: Any, ids: Tensor, answers: Tensor) -> Tensor:
    """Return the sum over the rows of the mean loss of what is to be predicted."""
    where = answers[:, 1:] != IGNORED
    hidden = hidden_of(model, ids)[:, :-1][where]
    losses = torch.nn.functional.cross_entropy(head_of(model, hidden).float(), ids[:, 1:][where], reduction="none")
    number = where.nonzero()[:, 0]
    return (losses / where.sum(1)[number]).sum()


assert EMBEDDINGS  # what a tied output layer is of
