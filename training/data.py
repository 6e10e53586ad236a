"""The examples of a data file as a Trainer takes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ..data.batching import collate
from ..data.encoding import Encoder
from ..data.example import Example
from ..data.row import Row
from ..data.rows import Rows
from ..data.sampling import read_rows
from ..fusion.errors import DataError
from ..fusion.progress import Progress, silent

logger = logging.getLogger(__name__)


@final
class TrainingSet(torch.utils.data.Dataset[Example]):
    """The examples of a data file.

    Text is encoded at once, so that what is wrong with it shows before training; rows with images when they are needed.

    Args:
        numbers: Of the rows to take. Default: all.

    Attributes:
        left_out: How many samples had nothing to predict within the longest length.

    Raises:
        DataError: A row does not suit the model, or no row is left.
    """

    def __init__(
        self, rows: Rows, encoder: Encoder, report: Progress = silent, numbers: Sequence[int] | None = None
    ) -> None:
        self._rows, self._encoder = rows, encoder
        self._found: list[Example | int] = []
        empty = 0
        options, skip = encoder.options, encoder.options.bad_rows == "skip"
        numbers = range(rows.count) if numbers is None else numbers

        def read(row: Row) -> list[Example] | None:
            if row.media and not skip and options.too_long != "drop":
                return None  # as all pictures together may not fit
            found = self._examples(row)
            return None if row.media and found else found

        for done, (number, every) in enumerate(read_rows(rows, numbers, read, skip=skip)):
            report(done, len(numbers), "")
            if every is None:
                self._found.append(number)
                continue
            useful = [example for example in every if example.num_predicted]
            empty += max(1, len(every)) - len(useful)  # a row without a token gives no sample at all
            self._found += useful
        encoder.fit.say(rows.name)
        self.left_out = empty
        if empty - encoder.fit.dropped:
            count = empty - encoder.fit.dropped
            logger.warning("%d samples of `%s` have nothing to predict and were left out", count, rows.name)
        if not self._found:
            raise DataError(
                f"`{rows.name}` gives nothing to predict within {encoder.max_length} tokens",
                hint="raise `max_length`",
                options=["max_length"],
            )

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> Example:
        found = self._found[index]
        return self._examples(self._rows.row(found))[0] if isinstance(found, int) else found

    def _examples(self, row: Row) -> list[Example]:
        found = self._encoder.labelled(row)
        if any("input_ids" not in example.inputs or "decoder_input_ids" in example.inputs for example in found):
            raise DataError(f"{row.what} has no text to learn from")
        return found


def collate_labelled(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return one batch of inputs and labels, padded on the right."""
    batch = collate(examples)
    return {**batch.inputs, "labels": batch.labels}
