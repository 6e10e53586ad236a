"""The arithmetic: what each kind of use of a parameter adds to the diagonal of ΣX².

Each function takes the inputs of one operation and returns a float64 sum that broadcasts to the weight as the
operation was given it. Squares and sums are float64 over chunks of rows, whatever the inputs' dtype: the square of a
float32 is exact there, and the sum of 10⁹ of them good to about 1e-13 in the worst case. Chunks are of fixed size and
added in order.

`weights` counts each row: 1 a real token, 0 padding, or how often a row stands for a token of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

from ...fusion.device import float64_device

CHUNK_ELEMENTS = 1 << 18  # in float64 they stay in the second-level cache
DEVICE_CHUNK_ELEMENTS = 1 << 24  # an accelerator wants few launches


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, on the CPU where its device has none; one that is that already is not copied."""
    return tensor.to(float64_device(tensor.device)).double()


def column_squares(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return Σ_t weights_t·x_tj² of an (n, d) matrix, of shape (d,)."""
    count, width = rows.shape
    device = float64_device(rows.device)
    most = CHUNK_ELEMENTS if device.type == "cpu" else DEVICE_CHUNK_ELEMENTS
    step = min(count, max(1, most // max(1, width)))
    total = torch.zeros(width, dtype=torch.float64, device=device)
    # One buffer throughout: memory that is new each time costs more, page by page, than the arithmetic.
    room = torch.empty(step, width, dtype=torch.float64, device=device)
    for start in range(0, count, max(1, step)):
        part = rows[start : start + step]
        piece = room[: len(part)].copy_(part).square_()
        if weights is not None:
            piece *= weights[start : start + step].to(piece).unsqueeze(1)
        total += piece.sum(0)
    return total


def grouped_column_squares(rows: Tensor, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return Σx² of each group of rows, (groups, d), and the groups' sizes; group k ends before row `ends[k]`."""
    sums, counts, start = [], [], 0
    for end in ends:
        sums.append(column_squares(rows[start:end]))
        counts.append(end - start)
        start = end
    return torch.stack(sums), torch.tensor(counts, dtype=torch.float64)


def elementwise_squares(x: Tensor, shape: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """Return Σx² for a weight of `shape` that multiplies `x` element by element, in the weight's shape.

    `weights` broadcasts to `x`.
    """
    lead = x.ndim - len(shape)
    kept = [k for k in range(x.ndim) if k >= lead and shape[k - lead] > 1]
    summed = [k for k in range(x.ndim) if k not in kept]
    order = (*summed, *kept)
    rows = x.permute(order).reshape(-1, max(1, _size(x, kept)))
    if weights is None:
        return column_squares(rows).reshape(tuple(shape))
    # The weights vary along summed axes only, as tokens do.
    per_row = weights.expand(x.shape).permute(order)[(..., *(0,) * len(kept))].reshape(-1)
    return column_squares(rows, per_row).reshape(tuple(shape))


def _size(x: Tensor, axes: Sequence[int]) -> int:
    size = 1
    for axis in axes:
        size *= x.shape[axis]
    return size


def row_counts(indices: Tensor, num_rows: int, weights: Tensor | None = None) -> Tensor:
    """Return how often each row of an embedding was looked up, of shape (num_rows, 1)."""
    flat = indices.reshape(-1).to(float64_device(indices.device))
    per_index = None if weights is None else wide(weights.expand(indices.shape)).reshape(-1)
    return torch.bincount(flat, per_index, minlength=num_rows).to(torch.float64).unsqueeze(1)


def patch_rows(
    x: Tensor,
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the unfolded patches of a convolution, of shape (batch·positions, channels, kernel positions)."""
    x = torch.nn.functional.pad(x, [p for size in reversed(padding) for p in (size, size)])
    space = len(kernel)
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
    order = (0, *range(2, 2 + space), 1, *range(2 + space, 2 + 2 * space))
    return x.permute(order).reshape(-1, x.shape[1], prod(kernel))


def patch_squares(
    x: Tensor,
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    out_sizes: Sequence[int],
) -> Tensor:
    """Return Σx² of the unfolded patches of a convolution, of shape (channels, *kernel).

    `x` is (batch, channels, *space). Each kernel position sees a strided window of the input; zero padding adds
    nothing.
    """
    if tuple(kernel) == tuple(stride) == tuple(x.shape[2:]) and not any(padding):
        # One patch that is the input, as in Qwen2-VL, which cuts patches before its convolution.
        return column_squares(x.reshape(x.shape[0], -1)).reshape(x.shape[1], *kernel)
    squares = torch.zeros(x.shape[1:], dtype=torch.float64, device=wide(x[:0]).device)
    for sample in x:
        squares += wide(sample).square()
    padded = torch.nn.functional.pad(squares, [p for size in reversed(padding) for p in (size, size)])
    total = torch.zeros(x.shape[1], *kernel, dtype=torch.float64, device=squares.device)
    for position in product(*(range(size) for size in kernel)):
        window = tuple(
            slice(k * d, k * d + s * (n - 1) + 1, s)
            for k, d, s, n in zip(position, dilation, stride, out_sizes, strict=True)
        )
        total[(slice(None), *position)] = padded[(slice(None), *window)].flatten(1).sum(1)
    return total
