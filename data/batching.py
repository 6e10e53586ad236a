"""Examples of one model's inputs, put together to batches."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ..fusion.errors import DataError
from .example import IGNORED, PADDED, Example

# Inputs of one number a token that only processors give.
ALSO_PADDED = {**PADDED, "mm_token_type_ids": 0}
LENGTHS_TO_TRY = 64
NO_SIZES = ("position", "n_ctx", "vocab", "_id", "token")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Examples that run together.

    Attributes:
        masks: (examples, length) for encoder and decoder, 1 for a token; empty where nothing is padded and nothing
            needs them.
        tokens, answers: (examples, length), those of the examples padded with 0 and `IGNORED`; none where nobody is to
            predict.
    """

    inputs: Mapping[str, Tensor]
    masks: tuple[Tensor, ...]
    num_samples: int
    what: str
    tokens: Tensor | None = None
    answers: Tensor | None = None

    def inputs_on(self, device: torch.device, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the inputs on a device, pictures and sound in a dtype."""
        return {
            key: value.to(device, dtype if value.is_floating_point() else None) for key, value in self.inputs.items()
        }

    def without_inputs(self) -> Batch:
        """Return the batch without its inputs, once they are of no more use."""
        return dataclasses.replace(self, inputs={}, masks=())

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return sum(int(mask.sum()) for mask in self.masks)

    @property
    def labels(self) -> Tensor:
        """The tokens where they are to be predicted, else `IGNORED`: a decoder's labels as transformers takes them."""
        tokens, answers = self._marked()
        return tokens.masked_fill(answers == IGNORED, IGNORED)

    @property
    def wanted(self) -> Wanted:
        """What is to be predicted."""
        tokens, answers = self._marked()
        ahead = answers[:, 1:] != IGNORED
        given = self.inputs.get("decoder_input_ids", self.inputs.get("input_ids"))
        assert given is not None
        where = torch.zeros(given.shape, dtype=torch.bool)
        where[:, : ahead.shape[1]] = ahead
        rows = torch.arange(len(ahead))[:, None].expand(ahead.shape)
        return Wanted(where=where, tokens=tokens[:, 1:][ahead], answers=answers[:, 1:][ahead], rows=rows[ahead])

    def _marked(self) -> tuple[Tensor, Tensor]:
        assert self.tokens is not None
        assert self.answers is not None
        return self.tokens, self.answers


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """What is to be predicted of a batch, in the order of rows and tokens.

    Attributes:
        where: (examples, length of the decoder's inputs), at which positions something is to be predicted.
        tokens: (n,), what.
        answers: (n,), the number of the answer, within its row.
        rows: (n,), the row.
    """

    where: Tensor
    tokens: Tensor
    answers: Tensor
    rows: Tensor


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


def collate(
    examples: Sequence[Example],
    *,
    lengths: Sequence[int] = (),
    fill: Mapping[str, int] | None = None,
    left: bool = False,
) -> Batch:
    """Return one batch: tokens padded to one length, images one after another.

    Args:
        lengths: Of encoder and decoder; that of the longest where it is not given.
        fill: With what inputs are padded, in place of 0; masks hide it in any case.
        left: Pad before the tokens, as a model that writes goes on at their end.

    Raises:
        DataError: Images of the batch have different sizes.
    """
    fill = {**ALSO_PADDED, **(fill or {})}
    found: dict[str, Tensor] = {}
    masks: list[Tensor] = []
    rest = list(dict.fromkeys(key for example in examples for key in example.inputs))
    for prefix in ("", "decoder_"):
        keys = [key for key in rest if key in fill and key.startswith("decoder_") == bool(prefix)]
        if f"{prefix}input_ids" not in keys:
            continue
        own = [example.inputs[f"{prefix}input_ids"].shape[1] for example in examples]
        length = lengths[len(masks)] if lengths else max(own)
        masks.append(_padded([torch.ones(1, size, dtype=torch.int64) for size in own], length, 0, left))
        for key in keys:
            given = [example.inputs.get(key) for example in examples]
            kind = next(value.dtype for value in given if value is not None)
            blank = 1 if key.endswith("attention_mask") else fill[key]
            absent = [torch.full((1, size), blank, dtype=kind) for size in own]
            values = [no if value is None else value for value, no in zip(given, absent, strict=True)]
            found[key] = _padded(values, length, fill[key], left)
        masks[-1] = found.get(f"{prefix}attention_mask", masks[-1])
        found[f"{prefix}attention_mask"] = masks[-1]
        rest = [key for key in rest if key not in keys]
    for key in rest:
        try:
            found[key] = torch.cat([example.inputs[key] for example in examples if key in example.inputs])
        except RuntimeError as error:
            raise DataError(
                f"`{key}` has different sizes within a batch", hint="a `batch_size` of 1", options=["batch_size"]
            ) from error
    longest = max((example.tokens.shape[1] for example in examples), default=0)
    return Batch(
        inputs=found,
        masks=tuple(masks),
        num_samples=len(examples),
        what=_what(examples),
        tokens=_padded([example.tokens for example in examples], longest, 0, left),
        answers=_padded([example.answers for example in examples], longest, IGNORED, left),
    )


@contextmanager
def class_padding(config: Any, examples: Iterable[Example]) -> Iterator[dict[str, int]]:
    """Give what `collate` fills tokens with for a classification head, which may seek the last that is no padding.

    A model that names no padding token refuses a batch; while this is entered it is told of one that is in none of the
    examples, so that a row's last token is found whatever it is.
    """
    text = config.get_text_config()
    padding, size = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if padding is not None or size is None:
        yield {} if padding is None else {"input_ids": padding}
        return
    given = (example.inputs["input_ids"] for example in examples if "input_ids" in example.inputs)
    used = {token for ids in given for token in ids.flatten().tolist()}
    padding = next(token for token in range(size + 1) if token not in used)
    config.pad_token_id = text.pad_token_id = padding
    try:
        yield {"input_ids": padding % size}  # all words are used: the mask hides what then stands there
    finally:
        config.pad_token_id = text.pad_token_id = None


def _padded(rows: Sequence[Tensor], length: int, fill: int, left: bool) -> Tensor:
    found = torch.full((len(rows), length), fill, dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        size = row.shape[1]
        found[place, length - size if left else 0 : length if left else size] = row[0]
    return found


def _single(example: Example) -> Batch:
    return Batch(inputs=example.inputs, masks=(), num_samples=1, what=example.what)


# Tokens of padding that a batch may have: another batch takes about as long as these.
MOST_PADDING = 128


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a batch has room for.

    Attributes:
        samples: Most samples, or None.
        tokens: Most tokens with padding, unless one sample has more; or None. Where images or sound are large, tokens
            do not say it: then there is room for one sample, unless `samples` says how many.
    """

    samples: int | None = None
    tokens: int | None = None

    @property
    def is_for_one(self) -> bool:
        """Whether there is room for one sample only."""
        return self.samples == 1

    def filled(self, samples: Sequence[Example]) -> Iterator[Sequence[Example]]:
        """Yield samples, the longest first, by the batch."""
        start = 0
        while start < len(samples):
            most = self._count(samples[start], len(samples))
            stop = start + self._alike(samples[start : start + most])
            yield samples[start:stop]
            start = stop

    def _alike(self, samples: Sequence[Example]) -> int:
        """Return how many of the samples, the longest first, are to share a batch."""
        if self.tokens is None or not samples[0].is_text:
            return len(samples)
        longest, padding = samples[0].length, 0
        for count, sample in enumerate(samples):
            padding += longest - sample.length
            if padding > MOST_PADDING:
                return count
        return len(samples)

    def _count(self, longest: Example, most: int) -> int:
        if self.tokens is None:
            return self.samples or most
        if not longest.is_text:
            return self.samples or 1
        return min(max(1, self.tokens // max(1, longest.length)), self.samples or most)


def make_batches(
    samples: Sequence[Example], room: Room, *, may_pad: bool, sizes: frozenset[int], max_length: int | None
) -> list[Batch]:
    """Return batches of samples of like length, padded on the right.

    Args:
        room: What a batch has room for.
        may_pad: False for models in which padding is not without effect, or which lose sight of which sample a token
            belongs to, such as mixtures of experts; then only samples of the same shapes share a batch.
        sizes: Lengths that must not occur, as a padded token is recognised by the shape of what it is in.
        max_length: What the model can take, or None.
    """
    if room.is_for_one:
        return [_single(sample) for sample in samples]
    padded = [sample for sample in samples if may_pad and sample.is_text]
    others = [sample for sample in samples if not (may_pad and sample.is_text)]
    batches: list[Batch] = []
    by_inputs: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for sample in padded:
        by_inputs[tuple(sorted(sample.inputs))].append(sample)
    for group in by_inputs.values():
        group.sort(key=lambda sample: -sample.length)
        for chunk in room.filled(group):
            batch = _pad(chunk, sizes, max_length) if len(chunk) > 1 else None
            batches += [batch] if batch else map(_single, chunk)
    by_shape: dict[Any, list[Example]] = defaultdict(list)
    for sample in others:
        by_shape[tuple(sorted((key, tuple(value.shape)) for key, value in sample.inputs.items()))].append(sample)
    for group in by_shape.values():
        batches += map(_join, room.filled(group))
    return batches


def _what(samples: Sequence[Example]) -> str:
    return samples[0].what if len(samples) == 1 else f"{samples[0].what} to {samples[-1].what}"


def _join(samples: Sequence[Example]) -> Batch:
    """Return one batch of samples of the same shapes: nothing is padded, and all rows count."""
    inputs = {key: torch.cat([sample.inputs[key] for sample in samples]) for key in samples[0].inputs}
    return Batch(inputs=inputs, masks=(), num_samples=len(samples), what=_what(samples))


def _pad(samples: Sequence[Example], sizes: frozenset[int], max_length: int | None) -> Batch | None:
    """Return one padded batch, or None where no length is free."""
    lengths: list[int] = []
    taken = set(sizes)
    for key in ("input_ids", "decoder_input_ids"):
        if key not in samples[0].inputs:
            continue
        longest = max(sample.inputs[key].shape[1] for sample in samples)
        length = free_length(longest, len(samples), taken, max_length)
        if length is None:
            return None
        taken |= {length, length * len(samples)}
        lengths.append(length)
    return collate(samples, lengths=lengths)


def free_length(
    longest: int, batch: int, taken: set[int], max_length: int | None, *, prime: bool = False
) -> int | None:
    """Return the least length from `longest` on that no other size of the model is, nor it times the batch; or None."""
    for length in range(longest, longest + LENGTHS_TO_TRY):
        if max_length is not None and length > max_length:
            return None
        is_free = length not in taken and length * batch not in taken and length != batch
        if is_free and not (prime and any(length % k == 0 for k in range(2, isqrt(length) + 1))):
            return length
    return None
