"""The class that a model with a classification head ranks first, for texts, pairs of texts and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..data.batching import class_padding, collate
from ..data.encoding import Encoder
from ..data.labels import class_number
from ..data.row import Row
from ..fusion.rows import RowOptions
from ..live.failures import plain_failures
from ..live.model import LiveModel


@torch.inference_mode()
def classify(
    model: LiveModel,
    rows: Sequence[Row],
    *,
    batch_size: int,
    max_length: int,
    options: RowOptions,
    advance: Callable[[int], None],
) -> list[bool]:
    """Return for each row whether its `label` is the class ranked first."""
    config = model.model.config
    encoder = Encoder(model.path, model.model, max_length=max_length, options=options, in_suite=True)
    right: list[bool] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        examples = [encoder.only(row) for row in batch]
        with class_padding(config, examples) as fill, plain_failures(model.model):
            given = collate(examples, fill=fill).inputs_on(model.device, model.model.dtype)
            found = model.model(**given).logits.argmax(-1).tolist()
        for row, number in zip(batch, found, strict=True):
            right.append(number == class_number(row, config))
        advance(len(batch))
    encoder.fit.say("the rows")
    return right
