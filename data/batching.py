"""Samples of one model's inputs, put together to batches."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Inputs of one number a token, with what they are padded with; any other input makes a sample one that is not padded.
PADDED = {
    "input_ids": 0,
    "attention_mask": 0,
    "token_type_ids": 0,
    "decoder_input_ids": 0,
    "decoder_attention_mask": 0,
}
LENGTHS_TO_TRY = 64
NO_SIZES = ("position", "n_ctx", "vocab", "_id", "token")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The inputs of `model.forward` for one sample, batch axis included.

    Attributes:
        inputs: By argument name.
        num_tokens: Tokens, of encoder and decoder together; images and sound are counted as the tokens that they
            become.
        what: Names the sample in messages.
    """

    inputs: Mapping[str, Tensor]
    num_tokens: int
    what: str

    @property
    def length(self) -> int:
        """Tokens of the longest input."""
        return max((self.inputs[key].shape[1] for key in PADDED if key in self.inputs), default=0)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples that run together.

    Attributes:
        masks: (samples, length) for encoder and decoder, 1 for a token; empty where nothing is padded and nothing
            needs them.
    """

    inputs: Mapping[str, Tensor]
    masks: tuple[Tensor, ...]
    num_samples: int
    what: str

    def inputs_on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the inputs on a device."""
        return {key: value.to(device) for key, value in self.inputs.items()}

    def without_inputs(self) -> Batch:
        """Return the batch without its inputs, once they are of no more use."""
        return dataclasses.replace(self, inputs={}, masks=())


def sizes_in(config: Any) -> frozenset[int]:
    """Return the sizes that a model's config names, at any depth: lengths that a padded batch must not have.

    Numbers of positions, of words and identifiers are no sizes of activations.
    """
    found: set[int] = set()
    queue = [config if isinstance(config, Mapping) else config.to_dict()]
    while queue:
        for key, value in queue.pop().items():
            if isinstance(value, Mapping):
                queue.append(value)
            elif isinstance(value, int) and not isinstance(value, bool) and not any(map(key.__contains__, NO_SIZES)):
                found.add(value)
    return frozenset(found)


def _single(sample: Sample) -> Batch:
    return Batch(inputs=sample.inputs, masks=(), num_samples=1, what=sample.what)


def make_batches(
    samples: Sequence[Sample], batch_size: int, *, may_pad: bool, sizes: frozenset[int], max_length: int | None
) -> list[Batch]:
    """Return batches of samples of like length, padded on the right.

    Args:
        may_pad: False for models that lose sight of which sample a token belongs to, such as mixtures of experts;
            then only samples of the same shapes share a batch.
        sizes: Lengths that must not occur, as a padded token is recognised by the shape of what it is in.
        max_length: What the model can take, or None.
    """
    if batch_size == 1:
        return [_single(sample) for sample in samples]
    padded = [sample for sample in samples if may_pad and set(sample.inputs) <= set(PADDED)]
    others = [sample for sample in samples if not (may_pad and set(sample.inputs) <= set(PADDED))]
    batches: list[Batch] = []
    by_inputs: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for sample in padded:
        by_inputs[tuple(sorted(sample.inputs))].append(sample)
    for group in by_inputs.values():
        group.sort(key=lambda sample: -sample.length)
        for chunk in _chunks(group, batch_size):
            batch = _pad(chunk, sizes, max_length) if len(chunk) > 1 else None
            batches += [batch] if batch else map(_single, chunk)
    by_shape: dict[Any, list[Sample]] = defaultdict(list)
    for sample in others:
        by_shape[tuple(sorted((key, tuple(value.shape)) for key, value in sample.inputs.items()))].append(sample)
    for group in by_shape.values():
        for chunk in _chunks(group, batch_size):
            batches.append(_join(chunk))
    return batches


def _chunks(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def _what(samples: Sequence[Sample]) -> str:
    return samples[0].what if len(samples) == 1 else f"{samples[0].what} to {samples[-1].what}"


def _join(samples: Sequence[Sample]) -> Batch:
    inputs = {key: torch.cat([sample.inputs[key] for sample in samples]) for key in samples[0].inputs}
    return Batch(inputs=inputs, masks=(), num_samples=len(samples), what=_what(samples))


def _pad(samples: Sequence[Sample], sizes: frozenset[int], max_length: int | None) -> Batch | None:
    """Return one padded batch, or None where no length is free."""
    inputs: dict[str, Tensor] = {}
    masks: list[Tensor] = []
    taken = set(sizes)
    for prefix in ("", "decoder_"):
        keys = [key for key in samples[0].inputs if key in PADDED and key.startswith("decoder_") == bool(prefix)]
        if not keys:
            continue
        lengths = [sample.inputs[keys[0]].shape[1] for sample in samples]
        length = _free_length(max(lengths), len(samples), taken, max_length)
        if length is None:
            return None
        taken |= {length, length * len(samples)}
        mask = torch.zeros(len(samples), length, dtype=torch.int64)
        for row, sample in enumerate(samples):
            mask[row, : lengths[row]] = 1
            given = sample.inputs.get(f"{prefix}attention_mask")
            if given is not None:
                mask[row, : lengths[row]] = given[0]
        for key in keys:
            rows = torch.full((len(samples), length), PADDED[key], dtype=samples[0].inputs[key].dtype)
            for row, sample in enumerate(samples):
                rows[row, : lengths[row]] = sample.inputs[key][0]
            inputs[key] = rows
        inputs[f"{prefix}attention_mask"] = mask
        masks.append(mask)
    return Batch(inputs=inputs, masks=tuple(masks), num_samples=len(samples), what=_what(samples))


def _free_length(longest: int, batch: int, taken: set[int], max_length: int | None) -> int | None:
    for length in range(longest, longest + LENGTHS_TO_TRY):
        if max_length is not None and length > max_length:
            return None
        if length not in taken and length * batch not in taken and length != batch:
            return length
    return None
