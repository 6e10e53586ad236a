"""Rules for what acts element by element: norms, scales of layers, added biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import moments
from .rule_parts import counts_of, record_bias, total_of

if TYPE_CHECKING:
    from .recorder import Recorder


def _norm(recorder: Recorder, weight: Tensor | None, bias: Tensor | None, normalised: Tensor) -> None:
    """Record the weight and bias of a norm over the last axes, from the normalised inputs."""
    given = weight if weight is not None else bias
    if given is None:
        return
    shape = given.shape
    weights = recorder.rows.of_tensor(normalised.shape)
    rows = normalised.numel() // max(1, shape.numel())
    count = float(rows) if weights is None else total_of(weights, rows) * (rows / weights.numel())
    use = recorder.use_of(weight)
    if use is not None:
        sums = moments.elementwise_squares(normalised, shape, weights)
        use.statistics.add(use.placement, sums, counts_of(count, len(shape), sums.device))
    record_bias(recorder, bias, count)


def layer_norm(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Record the weight and bias of a layer norm, whose input is the normalised one."""
    inputs, shape, weight, bias, eps = args
    out = func(*args, **kwargs)
    _norm(recorder, weight, bias, _normalised(inputs, len(shape), eps, center=True))
    return out


def rms_norm(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Record the weight of a fused RMS norm."""
    inputs, shape, weight = args[:3]
    eps = args[3] if len(args) > 3 else kwargs.get("eps")
    eps = torch.finfo(inputs.dtype).eps if eps is None else eps
    _norm(recorder, weight, None, _normalised(inputs, len(shape), eps, center=False))
    return func(*args, **kwargs)


def _normalised(inputs: Tensor, num_axes: int, eps: float, *, center: bool) -> Tensor:
    x = moments.wide(inputs)
    axes = list(range(x.ndim - num_axes, x.ndim))
    if center:
        x = x - x.mean(axes, keepdim=True)
    return x * (x.square().mean(axes, keepdim=True) + eps).rsqrt()


def group_norm(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Record the weight and bias of a group norm, one of each a channel."""
    inputs, weight, bias, batch, channels, _, groups, eps = args
    x = _normalised(inputs.reshape(batch, groups, -1), 1, eps, center=True)
    _norm(recorder, weight, bias, x.reshape(batch, channels, -1).transpose(1, 2))
    return func(*args, **kwargs)


def batch_norm(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Record the weight and bias of a batch norm with running statistics, one of each a channel."""
    inputs, weight, bias, mean, var = args[:5]
    eps = next(arg for arg in reversed(args) if isinstance(arg, float))
    x = moments.wide(inputs).transpose(1, -1)
    x = (x - moments.wide(mean)) * (moments.wide(var) + eps).rsqrt()
    _norm(recorder, weight, bias, x)
    return func(*args, **kwargs)


def _is_vector(tensor: Tensor) -> bool:
    return tensor.ndim > 0 and sum(size > 1 for size in tensor.shape) <= 1


def mul(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Record a vector that multiplies element by element: the weight of a norm, a layer's scale."""
    for weight, inputs in ((args[0], args[1]), (args[1], args[0])):
        use = recorder.use_of(weight)
        if use is None or recorder.use_of(inputs) is not None:
            continue
        if not _is_vector(weight) or not isinstance(inputs, Tensor) or inputs.ndim == 0:
            use.statistics.ops.add("mul")
            continue
        inputs = inputs.expand(torch.broadcast_shapes(inputs.shape, weight.shape))
        weights = recorder.rows.of_tensor(inputs.shape)
        sums = moments.elementwise_squares(inputs, weight.shape, weights)
        rows = inputs.numel() // weight.numel()
        count = float(rows) if weights is None else total_of(weights, rows) * (rows / weights.numel())
        use.statistics.add(use.placement, sums, counts_of(count, weight.ndim, sums.device))
    return func(*args, **kwargs)


def add(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Record a vector that is added, a bias; a constant added to a weight, as in Gemma's norms, gives that weight."""
    out = None
    for bias, inputs in ((args[0], args[1]), (args[1], args[0])):
        use = recorder.use_of(bias)
        if use is None or recorder.use_of(inputs) is not None:
            continue
        if not isinstance(inputs, Tensor) or inputs.ndim == 0:
            out = func(*args, **kwargs)
            recorder.copied(use, out)
        elif _is_vector(bias) and (bias.ndim == 1 or len(use.statistics.shape) == 1) and inputs.ndim > 1:
            inputs = inputs.expand(torch.broadcast_shapes(inputs.shape, bias.shape))
            weights = recorder.rows.of_tensor(inputs.shape)
            rows = inputs.numel() // bias.numel()
            count = float(rows) if weights is None else total_of(weights, rows) * (rows / weights.numel())
            record_bias(recorder, bias, count)
        else:
            use.statistics.ops.add("add")
    return func(*args, **kwargs) if out is None else out
