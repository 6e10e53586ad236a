"""The samples of a calibration: drawn from the data, encoded, counted, digested."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import xxhash

from ..fusion.errors import DataError
from .encoding import Encoder
from .example import Example
from .rows import Rows, chosen, drawn

logger = logging.getLogger(__name__)


def draw_samples(rows: Rows, encoder: Encoder, *, count: int, seed: int) -> list[Example]:
    """Return up to `count` samples, in the order of the data.

    Where rows are of several kinds, as many tokens as `count` samples of full length have, the same number of each
    kind.

    Raises:
        DataError: There are no rows, or one does not suit the model.
    """
    draw = _kind_by_kind if rows.kinds else _windows if rows.documents else _one_a_row
    samples = draw(rows, encoder, count, seed)
    if not samples:
        raise DataError(f"`{rows.name}` gives no token to run the model on")
    return samples


def _windows(rows: Rows, encoder: Encoder, count: int, seed: int) -> list[Example]:
    """Return samples drawn among all pieces of running text."""
    pieces = [sample for row in rows for sample in encoder.examples(row)]
    return [pieces[k] for k in sorted(chosen(count, len(pieces), seed))]


def _one_a_row(rows: Rows, encoder: Encoder, count: int, seed: int) -> list[Example]:
    """Return the samples of rows drawn; rows that hold nothing are replaced, and said."""
    found: dict[int, Example] = {}
    empty = 0
    for number in drawn(count, rows.count, seed):
        if len(found) >= count:
            break
        samples = encoder.examples(rows.row(number))
        if samples:
            found[number] = samples[0]
        else:
            empty += 1
    if empty:
        logger.warning("%d rows of `%s` hold nothing and were left out", empty, rows.name)
    return [found[number] for number in sorted(found)]


def _kind_by_kind(rows: Rows, encoder: Encoder, count: int, seed: int) -> list[Example]:
    """Return samples of each kind until its share of the tokens is full; the last of each is cut to fit.

    Long rows would otherwise count for many short ones, and what is measured is a mean over tokens.
    """
    share = max(1, count * encoder.max_length // len(rows.kinds))
    found: list[Example] = []
    for kind, numbers in rows.kinds.items():
        left = share
        for number in chosen(len(numbers), len(numbers), seed):
            if left <= 0:
                break
            for sample in encoder.examples(rows.row(numbers[number]))[:1]:
                found.append(replace(sample.cut(left), kind=kind))
                left -= found[-1].num_tokens
        if left > 0:
            logger.warning("`%s` of the set `%s` has %d tokens, its share is %d", kind, rows.name, share - left, share)
    return found


def tokens_by_kind(samples: Sequence[Example]) -> dict[str, int]:
    """Return how many tokens the samples of each kind have; nothing of samples without a kind."""
    found: dict[str, int] = {}
    for sample in samples:
        if sample.kind is not None:
            found[sample.kind] = found.get(sample.kind, 0) + sample.num_tokens
    return found


def digest_of(samples: Sequence[Example]) -> str:
    """Return a digest of all inputs, in order."""
    digest = xxhash.xxh3_128()
    for sample in samples:
        for key in sorted(sample.inputs):
            value = sample.inputs[key].contiguous()
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.numpy().tobytes())
    return f"xxh3-128:{digest.hexdigest()}"
