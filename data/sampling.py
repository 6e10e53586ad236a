"""The samples of a calibration: drawn from the data, encoded, counted, digested."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
import xxhash

from ..fusion.errors import DataError
from .encoding import Encoder
from .example import Example
from .row import Row
from .rows import Rows, chosen

logger = logging.getLogger(__name__)
Made = TypeVar("Made")


def read_rows(
    rows: Rows, numbers: Iterable[int], make: Callable[[Row], Made], *, skip: bool
) -> Iterator[tuple[int, Made]]:
    """Yield the number of each row and what is made of it.

    Args:
        skip: Leave out rows that cannot be read or do not suit the model; they are counted, and said at the end.

    Raises:
        DataError: Of a row; or all of them were left out.
    """
    bad, good, first = 0, 0, None
    try:
        for number in numbers:
            try:
                made = make(rows.row(number))
            except DataError as error:
                if not skip:
                    raise
                bad, first = bad + 1, first or error
                continue
            good += 1
            yield number, made
    finally:  # also where no more rows are asked for
        if bad:
            logger.warning("%d rows of `%s` were left out; the first: %s", bad, rows.name, first)
    if first is not None and not good:
        raise first


def draw_samples(
    rows: Rows, encoder: Encoder, *, count: int, seed: int, usable: Callable[[Example], bool] = lambda _: True
) -> list[Example]:
    """Return up to `count` samples, in the order of the data.

    Where rows are of several kinds, as many tokens as `count` samples of full length have, the same number of each
    kind.

    Args:
        usable: Samples for which it is false count as rows that hold nothing.

    Raises:
        DataError: There are no rows, or one does not suit the model.
    """
    draw = _kind_by_kind if rows.kinds else _windows if rows.documents else _one_a_row
    samples = draw(rows, encoder, count, seed, usable)
    encoder.fit.say(rows.name)
    if not samples:
        raise DataError(f"`{rows.name}` gives no token to run the model on")
    return samples


def _windows(rows: Rows, encoder: Encoder, count: int, seed: int, _usable: Callable[[Example], bool]) -> list[Example]:
    """Return samples drawn among all pieces of running text."""
    skip, length = encoder.options.bad_rows == "skip", encoder.max_length
    found = [*read_rows(rows, range(rows.count), encoder.document_ids, skip=skip)]
    pieces = [(place, start) for place, (_, ids) in enumerate(found) for start in range(0, len(ids), length)]
    samples: list[Example] = []
    for piece in sorted(chosen(count, len(pieces), seed)):
        place, start = pieces[piece]
        number, ids = found[place]
        samples += encoder.piece(ids[start : start + length], f"row {number + 1} of `{rows.name}`")
    return samples


def _one_a_row(rows: Rows, encoder: Encoder, count: int, seed: int, usable: Callable[[Example], bool]) -> list[Example]:
    """Return the samples of rows drawn; rows that hold nothing are replaced, and said."""
    found: dict[int, Example] = {}
    skip, empty = encoder.options.bad_rows == "skip", 0

    def numbers() -> Iterator[int]:
        first = chosen(count, rows.count, seed)
        yield from sorted(first)  # large files are read fastest in order
        if len(found) < count < rows.count:
            yield from chosen(rows.count, rows.count, seed)[count:]

    for number, examples in read_rows(rows, numbers(), encoder.examples, skip=skip):
        samples = [example for example in examples if usable(example)]
        if samples:
            found[number] = samples[0]
        else:
            empty += 1
        if len(found) >= count:
            break
    empty -= encoder.fit.dropped
    if empty > 0:
        logger.warning("%d rows of `%s` hold nothing and were left out", empty, rows.name)
    return [found[number] for number in sorted(found)]


def _kind_by_kind(
    rows: Rows, encoder: Encoder, count: int, seed: int, _usable: Callable[[Example], bool]
) -> list[Example]:
    """Return samples of each kind until its share of the tokens is full; the last of each is cut to fit.

    Long rows would otherwise count for many short ones, and what is measured is a mean over tokens. A sample with
    pictures or sound is never cut.
    """
    parts = {kind: rows.shares.get(kind, 1) for kind in rows.kinds}
    found: list[Example] = []
    for kind in rows.kinds:
        share = left = max(1, count * encoder.max_length * parts[kind] // sum(parts.values()))
        for sample in of_kind(rows, kind, encoder, seed):
            found.append(sample.cut(left))
            left -= found[-1].num_tokens
            if left <= 0:
                break
        if left > 0:
            logger.warning("`%s` of the set `%s` has %d tokens, its share is %d", kind, rows.name, share - left, share)
    return found


def of_kind(rows: Rows, kind: str, encoder: Encoder, seed: int, *, without: Collection[int] = ()) -> Iterator[Example]:
    """Yield the samples of a kind, whole, in the order in which they are drawn; but those of some of its rows."""
    numbers = rows.kinds[kind]
    whole = None
    for number in chosen(len(numbers), len(numbers), seed):
        if number in without:
            continue
        row = rows.row(numbers[number])
        if row.media and whole is None:
            whole = encoder.unlimited()
        for sample in ((whole if row.media else encoder) or encoder).examples(row)[:1]:
            yield replace(sample, kind=kind)


def held_out(
    rows: Rows,
    encoder: Encoder,
    measured: Sequence[tuple[int, Mapping[str, int]]],
    *,
    seed: int,
    num_tokens: int,
    most: int,
) -> list[Example]:
    """Return samples of each kind that were not measured, until so many of their tokens are to be predicted.

    Args:
        measured: Seeds, and how many samples of each kind were drawn by each.
        most: Tokens of one sample, which is cut; more samples say more than longer ones.
    """
    found: list[Example] = []
    for kind, numbers in rows.kinds.items():
        taken = {k for own, counts in measured for k in chosen(counts.get(kind, 0), len(numbers), own)}
        left = num_tokens
        for sample in of_kind(rows, kind, encoder, seed, without=taken):
            if left <= 0:
                break
            sample = sample.cut(max(most, sample.num_tokens - sample.num_predicted + most))
            found += [sample] if sample.num_predicted else []
            left -= sample.num_predicted
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
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"xxh3-128:{digest.hexdigest()}"
