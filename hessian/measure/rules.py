"""One rule an operation: which operand is the parameter, which the inputs, and what that adds.

A rule runs the operation and records its inputs: before it, where the operation is in place. Operands that are no
watched parameter are let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...live.privates import TO_COPY, UNSAFE_VIEW, newer_operator
from . import elementwise, moments
from .gram import own_rows
from .recorder import OperatorRule, Recorder, RuleTable, Use
from .rule_parts import counts_of, record_bias, total_of

aten = torch.ops.aten


def _linear(recorder: Recorder, use: Use, rows: Tensor, weights: Tensor | None, input_axis: int) -> None:
    """Record a matrix whose axis `input_axis` meets the columns of `rows`."""
    sums = recorder.column_squares(rows, weights)
    values = sums.unsqueeze(1 - input_axis)
    use.statistics.add(use.placement, values, counts_of(total_of(weights, len(rows)), 2, values.device))
    if use.statistics.wants_gram:
        use.statistics.add_linear_gram(use.placement, recorder.own_rows(rows, weights))


def _product(recorder: Recorder, left: Tensor, right: Tensor) -> Tensor | None:
    """Record a product of two matrices of which one is a parameter; return the weights of its rows."""
    weight = recorder.use_of(right)
    if weight is not None:
        weights = recorder.rows.of_rows(len(left))
        _linear(recorder, weight, left, weights, 0)
        return weights
    weight = recorder.use_of(left)
    if weight is not None:
        _linear(recorder, weight, right.T, recorder.rows.of_rows(right.shape[1]), 1)
        return None
    return recorder.rows.of_rows(len(left))


def _mm(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    _product(recorder, args[0], args[1])
    return func(*args, **kwargs)


def _addmm(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    bias, left, right = args[:3]
    weights = _product(recorder, left, right)
    if bias.ndim == 1:
        record_bias(recorder, bias, total_of(weights, len(left)))
    return func(*args, **kwargs)


def _mv(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    _product(recorder, args[0], args[1].unsqueeze(1))
    return func(*args, **kwargs)


def _linear_op(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    inputs, weight = args[:2]
    rows = inputs.reshape(-1, inputs.shape[-1])
    weights = _product(recorder, rows, weight.T)
    if len(args) > 2 and args[2] is not None:
        record_bias(recorder, args[2], total_of(weights, len(rows)))
    return func(*args, **kwargs)


def _bmm(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    left, right = args[-2:]
    use, inputs, axis = recorder.use_of(right), left, 1
    if use is None:
        use, inputs, axis = recorder.use_of(left), right.transpose(1, 2), 2
    if use is not None:
        batch, count, width = inputs.shape
        if use.placement.axes[0]:
            weights = recorder.rows.of_rows(count)
            sums = torch.stack([moments.column_squares(rows, weights) for rows in inputs])
            counts = counts_of(total_of(weights, count), 3, sums.device).expand(batch, 1, 1)
        else:
            weights = recorder.rows.of_rows(batch * count)
            sums = moments.column_squares(inputs.reshape(-1, width), weights).unsqueeze(0)
            counts = counts_of(total_of(weights, batch * count), 3, sums.device)
        use.statistics.add(use.placement, sums.unsqueeze(3 - axis), counts)
        if use.statistics.wants_gram:
            _add_batched_gram(use, inputs, weights)
    return func(*args, **kwargs)


def _add_batched_gram(use: Use, inputs: Tensor, weights: Tensor | None) -> None:
    """Add the inputs, (batch, count, width), of a stack of matrices, or of one that is repeated."""
    statistics, part = use.statistics, use.placement.part[0]
    if not use.placement.axes[0]:
        statistics.add_linear_gram(use.placement, own_rows(inputs.reshape(-1, inputs.shape[-1]), weights))
        return
    for k, rows in enumerate(inputs):
        statistics.add_stacked_gram(use.placement, part.start + k, own_rows(rows, weights))


def _grouped_mm(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    rows, weight = args[:2]
    ends = args[2] if len(args) > 2 else kwargs.get("offs")
    use = recorder.use_of(weight)
    if use is not None and rows.ndim == 2 and weight.ndim == 3 and ends is not None:
        limits = [int(end) for end in ends.tolist()]
        sums, counts = moments.grouped_column_squares(rows, limits)
        use.statistics.add(use.placement, sums.unsqueeze(2), counts.reshape(-1, 1, 1).to(sums.device))
        if use.statistics.wants_gram:
            first = use.placement.part[0].start
            for k, (a, b) in enumerate(zip([0, *limits[:-1]], limits, strict=True)):
                if b > a:
                    use.statistics.add_stacked_gram(use.placement, first + k, own_rows(rows[a:b], None))
    return func(*args, **kwargs)


def _convolution(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    inputs, weight, bias, stride, padding, dilation, transposed, _, groups = args
    out = func(*args, **kwargs)
    space = weight.ndim - 2
    weights = recorder.rows.of_time(inputs.shape)
    positions = out.numel() / out.shape[1]
    if weights is not None:
        padded = weights.numel() - total_of(weights, weights.numel())
        positions -= padded / stride[0]
        inputs = inputs * weights.to(inputs)
    record_bias(recorder, bias, positions)
    use = recorder.use_of(weight)
    if use is None or transposed:
        if use is not None:
            use.statistics.ops.add("transposed convolution")
        return out
    sums = moments.patch_squares(
        inputs,
        weight.shape[2:],
        stride=_each(stride, space),
        padding=_each(padding, space),
        dilation=_each(dilation, space),
        out_sizes=out.shape[2:],
    )
    if groups > 1:
        per_group = sums.reshape(groups, weight.shape[1], *weight.shape[2:])
        values = per_group.repeat_interleave(weight.shape[0] // groups, 0)
    else:
        values = sums.unsqueeze(0)
    use.statistics.add(use.placement, values, counts_of(positions, weight.ndim, values.device))
    if use.statistics.wants_gram and use.placement.is_whole(use.statistics.shape):
        _add_patch_gram(
            use, inputs, weight, _each(stride, space), _each(padding, space), _each(dilation, space), groups
        )
    return out


def _add_patch_gram(
    use: Use,
    inputs: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Add the patches that a convolution sees, one sample at a time; each group of channels has a matrix of its own."""
    channels = weight.shape[1]
    for sample in inputs.split(1):
        patches = moments.patch_rows(sample, weight.shape[2:], stride=stride, padding=padding, dilation=dilation)
        for k in range(groups):
            rows = patches[:, k * channels : (k + 1) * channels].flatten(1)
            index, stack = ((k,), (groups,)) if groups > 1 else ((), ())
            use.statistics.add_gram(own_rows(rows, None), index=index, stack=stack)


def _each(values: Sequence[int], count: int) -> list[int]:
    return list(values) * count if len(values) == 1 else list(values)


def _embedding(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    weight, indices = args[:2]
    use = recorder.use_of(weight)
    if use is not None:
        weights = recorder.rows.of_indices(indices.shape)
        factor = weights if isinstance(weights, float) else 1.0
        per_index = weights if isinstance(weights, Tensor) else None
        counts = moments.row_counts(indices, weight.shape[0], per_index) * factor
        use.statistics.add(use.placement, counts, counts.sum().reshape(1, 1))
    return func(*args, **kwargs)


def _copy(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    out = func(*args, **kwargs)
    use = recorder.use_of(args[0])
    if use is not None and out.is_floating_point():
        recorder.copied(use, out)
    return out


_RULES: dict[Any, OperatorRule] = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.mv.default: _mv,
    aten.linear.default: _linear_op,
    aten.bmm.default: _bmm,
    aten.baddbmm.default: _bmm,
    aten.convolution.default: _convolution,
    aten.embedding.default: _embedding,
    aten.native_layer_norm.default: elementwise.layer_norm,
    aten.native_group_norm.default: elementwise.group_norm,
    aten.native_batch_norm.default: elementwise.batch_norm,
    aten.cudnn_batch_norm.default: elementwise.batch_norm,
    aten.mul.Tensor: elementwise.mul,
    aten.mul_.Tensor: elementwise.mul,
    aten.add.Tensor: elementwise.add,
    aten.add_.Tensor: elementwise.add,
    TO_COPY: _copy,
    aten.clone.default: _copy,
}
for _name, _rule in (("_grouped_mm", _grouped_mm), ("_fused_rms_norm", elementwise.rms_norm)):
    if (_operator := newer_operator(_name)) is not None:
        _RULES[_operator] = _rule

_VIEWS = {UNSAFE_VIEW} | {
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("alias", "default"),
        ("detach", "default"),
        ("expand", "default"),
        ("permute", "default"),
        ("select", "int"),
        ("slice", "Tensor"),
        ("split", "Tensor"),
        ("split_with_sizes", "default"),
        ("squeeze", "dim"),
        ("t", "default"),
        ("transpose", "int"),
        ("unbind", "int"),
        ("unsqueeze", "default"),
        ("view", "default"),
    )
}

TABLE = RuleTable(rules=_RULES, products={aten.mm.default, aten.addmm.default, aten.linear.default}, views=_VIEWS)
