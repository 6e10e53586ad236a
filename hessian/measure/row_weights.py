"""How often each row of an activation counts: once a token, never for padding.

A batch of several samples is padded, so a row of an activation may be no token. Where it stands follows from its
shape: models keep (batch, length) leading, or flatten the two. This is unambiguous because `batching` pads to lengths
that occur nowhere else in the model. What is computed once for the whole batch, such as a table of positions, counts
once a sample. A batch of one has no padding and needs none of this, unless only some of its tokens are to count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .moments import wide


class RowWeights:
    """The masks of one batch, (batch, length) each, 1 for a token; encoder and decoder have one each.

    Of each activation it asks whether it is `shared`: made of nothing that belongs to one sample.
    """

    def __init__(self, masks: Sequence[Tensor], num_samples: int) -> None:
        self.masks = tuple(masks)
        self.num_samples = num_samples

    def of_rows(self, count: int, *, shared: bool) -> Tensor | None:
        """Return the weights of the rows of a (count, d) matrix, or None where each counts once."""
        for mask in self.masks:
            batch, length = mask.shape
            if count == batch * length:
                return mask.reshape(-1)
            if count % (batch * length) == 0:
                return mask.reshape(-1).repeat_interleave(count // (batch * length))
            if shared and count == length:
                return mask.sum(0)
        return torch.full((count,), self.num_samples) if shared else None

    def of_tensor(self, shape: Sequence[int], *, shared: bool) -> Tensor | None:
        """Return weights that broadcast to a tensor of `shape`, or None where each row counts once."""
        for mask in self.masks:
            batch, length = mask.shape
            if len(shape) < 2:
                continue
            if shape[0] == batch and shape[1] == length:
                return mask.reshape(batch, length, *(1,) * (len(shape) - 2))
            if len(shape) > 2 and shape[0] == batch and shape[2] == length:
                return mask.reshape(batch, 1, length, *(1,) * (len(shape) - 3))
            if shared and shape[0] == 1 and shape[1] == length:
                return mask.sum(0).reshape(1, length, *(1,) * (len(shape) - 2))
            rows = self.of_rows(shape[0], shared=False)
            if rows is not None:
                return rows.reshape(-1, *(1,) * (len(shape) - 1))
        return torch.full((1,) * len(shape), self.num_samples) if shared else None

    def of_time(self, shape: Sequence[int]) -> Tensor | None:
        """Return weights for (batch, channels, length), the form that convolutions over time see."""
        for mask in self.masks:
            if len(shape) == 3 and (shape[0], shape[2]) == tuple(mask.shape):
                return mask.unsqueeze(1)
        return None

    def of_indices(self, shape: Sequence[int], *, shared: bool) -> Tensor | float | None:
        """Return weights that broadcast to indices of `shape`.

        Indices of (length, length') that the batch shares are those of a table of relative positions: a pair of tokens
        counts for each sample that has both.
        """
        for mask in self.masks:
            if tuple(shape) == tuple(mask.shape):
                return mask
            for other in self.masks:
                if shared and tuple(shape[-2:]) == (mask.shape[1], other.shape[1]):
                    pairs = wide(mask).T @ wide(other)
                    return pairs.reshape(*(1,) * (len(shape) - 2), *pairs.shape)
            if shared and shape and shape[-1] == mask.shape[1] and all(size == 1 for size in shape[:-1]):
                return mask.sum(0).reshape(tuple(shape))
        return float(self.num_samples) if shared else None
