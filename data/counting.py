"""Batches whose statistics are of what is to be predicted alone, as a loss mask says.

Where a token stands in an activation follows from its shape (`hessian/measure/row_weights.py`), so a batch is padded to
a length that occurs nowhere else in the model. Beside pictures or sound it is a prime above all their sizes, of which
no number of patches or frames is a multiple.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..fusion.errors import DataError
from .batching import Batch, Room, collate, free_length
from .example import IGNORED, PADDED, Example
from .texts import is_of_tokens


def batches_of_answers(
    samples: Sequence[Example],
    room: Room,
    *,
    may_pad: bool,
    looks_back: bool,
    sizes: frozenset[int],
    max_length: int | None,
) -> list[Batch]:
    """Return batches of samples of like length whose masks are 1 for what is to be predicted.

    Args:
        room: What a batch has room for.
        may_pad: False for models in which padding is not without effect; then only samples of one length share a batch.
        looks_back: Whether no token sees those after it, so that padding behind a sample changes nothing of it.
        sizes: Lengths that must not occur.
        max_length: What the model can take, or None.

    Raises:
        DataError: No length is free.
    """
    texts = sorted((one for one in samples if one.is_text), key=lambda one: -one.length)
    alike: dict[Any, list[Example]] = defaultdict(list)
    for one in texts:
        alike[() if may_pad else tuple(sorted((key, value.shape[1]) for key, value in one.inputs.items()))].append(one)
    groups: list[Sequence[Example]] = [group for same in alike.values() for group in room.filled(same)]
    groups += [[one] for one in samples if not one.is_text]
    return [_counted(group, may_pad or looks_back, sizes, max_length) for group in groups]


def _counted(samples: Sequence[Example], may_pad: bool, sizes: frozenset[int], max_length: int | None) -> Batch:
    lengths: list[int] = []
    taken = set(sizes)
    for key in ("input_ids", "decoder_input_ids"):
        if key not in samples[0].inputs:
            continue
        longest = max(sample.inputs[key].shape[1] for sample in samples)
        beside = _largest_beside(samples[0], longest)
        length = free_length(max(longest, beside + 1), len(samples), taken, max_length, prime=beside > 0)
        if length is None or (length > longest and not may_pad):
            raise DataError(
                f"{samples[0].what} is too long: no batch leaves room to tell its tokens from other inputs",
                hint="a smaller `max_length`, or `count` all",
                options=["max_length", "count"],
            )
        taken |= {length, length * len(samples)}
        lengths.append(length)
    batch = collate(
        [_widened(sample, lengths[0]) for sample in samples] if len(samples) == 1 else samples, lengths=lengths
    )
    said = [_padded(sample.answers != IGNORED, lengths[-1]) for sample in samples]
    return dataclasses.replace(batch, masks=(*batch.masks[:-1], torch.cat(said).to(batch.masks[-1].dtype)))


def _largest_beside(sample: Example, length: int) -> int:
    """Return the largest size of what is not a number a token: pictures and sound; 0 where there is none."""
    return max(
        (max(value.shape) for key, value in sample.inputs.items() if not is_of_tokens(key, value, length)), default=0
    )


def _widened(sample: Example, length: int) -> Example:
    """Return an example whose inputs of one number a token that `collate` does not pad are as long as the batch."""
    own = sample.inputs["input_ids"].shape[1] if "input_ids" in sample.inputs else 0
    inputs = {}
    for key, value in sample.inputs.items():
        if own and key not in PADDED and is_of_tokens(key, value, own):
            axis = next(k for k in range(1, value.ndim) if value.shape[k] == own)
            value = pad(value, [*(0, 0) * (value.ndim - axis - 1), 0, length - own])
        inputs[key] = value
    return dataclasses.replace(sample, inputs=inputs)


def _padded(mask: Tensor, length: int) -> Tensor:
    return pad(mask[:, :length], (0, length - min(length, mask.shape[1])))
