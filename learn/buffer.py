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
from ..data.rows import open_rows
from ..fusion.errors import DataError


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


def read_buffer(file: Path, encoder: Encoder, *, classifies: bool) -> list[BufferSample]:
    """Return the samples of a file.

    Args:
        classifies: Whether the model has a classification head.

    Raises:
        DataError: A row has nothing to predict.
    """
    found = []
    rows = open_rows(file)
    for row in rows:
        domain = str(row.get("domain")) if "domain" in row else None
        label = row.get("label") if "label" in row and classifies else None
        if classifies and (not isinstance(label, int) or isinstance(label, bool)):
            raise DataError(f"{row.what} has no integer `label`, which a model with a classification head predicts")
        examples = [encoder.only(row)] if classifies else encoder.labelled(row)
        if not classifies and not (examples and all(example.num_predicted for example in examples)):
            raise DataError(f"{row.what} has nothing to predict")
        found += [BufferSample(example=example, label=label, domain=domain) for example in examples]
    encoder.fit.say(rows.name)
    return found


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
