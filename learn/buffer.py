"""The memory buffer: a handful of labelled samples, and the domains that they come from.

A row is what `data/encoding.py` reads, or `text` and `label` for a model with a classification head. `domain` names the
experience that it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.batching import Batch, class_padding, collate
from ..data.encoding import Encoder
from ..data.example import Example
from ..data.labels import class_number
from ..data.rows import chosen, open_rows
from ..fusion.errors import DataError
from ..fusion.methods.checks import at_least


@dataclass(frozen=True, kw_only=True, eq=False)
class BufferSample:
    """One sample.

    Attributes:
        label: The class, of a model with a classification head.
        domain: Where it comes from, or None.
    """

    example: Example
    label: int | None = None
    domain: str | None = None


def read_buffer(
    file: Path, encoder: Encoder, *, classifies: bool, numbers: Sequence[int] | None = None
) -> list[BufferSample]:
    """Return the samples of a file.

    Args:
        classifies: Whether the model has a classification head.
        numbers: Of the rows to take. Default: all.

    Raises:
        DataError: A row has nothing to predict.
    """
    rows, found = open_rows(file), []
    for row in rows if numbers is None else map(rows.row, numbers):
        domain = str(row.get("domain")) if "domain" in row else None
        label = class_number(row, encoder.config) if classifies else None
        examples = [encoder.only(row)] if classifies else encoder.labelled(row)
        if not classifies and not (examples and all(example.num_predicted for example in examples)):
            raise DataError(f"{row.what} has nothing to predict")
        found += [BufferSample(example=example, label=label, domain=domain) for example in examples]
    encoder.fit.say(rows.name)
    return found


def draw_buffer(file: Path, per_class: int, seed: int) -> list[int]:
    """Return numbers of rows drawn at random, in their order: as many of each class of each domain as asked for.

    A row's class is its `label`, or the text that answers it. A class of fewer rows gives all of them.

    Raises:
        DataError: A row has neither.
    """
    at_least("per_class", per_class, 1)
    rows = open_rows(file)
    groups: dict[tuple[str, str], list[int]] = {}
    for number in chosen(rows.count, rows.count, seed):
        row = rows.row(number)
        name = next((key for key in ("label", "completion", "answer") if key in row), None)
        if name is None:
            raise DataError(f"{row.what} has no `label`, `completion` or `answer` to tell its class by")
        group = groups.setdefault((str(row.get("domain")) if "domain" in row else "", str(row.get(name))), [])
        if len(group) < per_class:
            group.append(number)
    return sorted(number for group in groups.values() for number in group)


def batches(samples: Sequence[BufferSample], size: int, config: Any = None) -> Iterator[tuple[Batch, list[int | None]]]:
    """Yield the samples in order, and their classes.

    Args:
        config: Of the model, which is told of the padding while a batch is at hand if it has a classification head.
    """
    for start in range(0, len(samples), size):
        group = samples[start : start + size]
        examples = [sample.example for sample in group]
        with nullcontext({}) if config is None else class_padding(config, examples) as fill:
            yield collate(examples, fill=fill), [sample.label for sample in group]
