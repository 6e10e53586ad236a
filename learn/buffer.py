"""The memory buffer: a handful of labelled samples, as batches with what is to be predicted.

A row is `prompt` and `completion` (the completion is to be predicted), `text` (all of it), `messages` (the last one),
`input_ids` (all), or `text` and `label` for a model with a classification head. `domain` names the experience that it
comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.rows import open_rows
from ..fusion.errors import DataError

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class LabelledSample:
    """One sample.

    Attributes:
        ids: Token ids.
        labels: For each token the token that it is, where it is to be predicted, else `IGNORED`; or one class.
        domain: Where it comes from, or None.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    domain: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledBatch:
    """Samples padded on the right.

    Attributes:
        inputs: For the model's forward, without labels.
        labels: (rows, length), or (rows,) classes.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor


class BufferReader:
    """Turns rows into samples for one model.

    Args:
        folder: Of the tokenizer.
        classifies: Whether the model has a classification head.
        max_length: Longer samples lose their beginning, as their end is what is to be predicted.
    """

    def __init__(self, folder: Path, *, classifies: bool, max_length: int = 512) -> None:
        self._folder = folder
        self._classifies = classifies
        self._max_length = max_length
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in the folder; loaded when it is first needed."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            except Exception as error:  # transformers raises anything on what is not there
                raise DataError(f"transformers cannot load a tokenizer from `{self._folder}`: {error}") from error
        return self._tokenizer

    def read(self, file: Path) -> list[LabelledSample]:
        """Return the samples of a file.

        Raises:
            DataError: A row has nothing to predict.
        """
        rows = open_rows(file)
        return [self._sample(rows.read(number), f"row {number + 1} of `{rows.name}`") for number in range(rows.count)]

    def _sample(self, row: Mapping[str, Any], what: str) -> LabelledSample:
        domain = None if row.get("domain") is None else str(row["domain"])
        prompt, completion = self._ids(row, what)
        if self._classifies:
            if not isinstance(row.get("label"), int):
                raise DataError(f"{what} has no integer `label`, which a model with a classification head predicts")
            ids = (*prompt, *completion)[-self._max_length :]
            return LabelledSample(ids=ids, labels=(row["label"],), domain=domain)
        ids = (*prompt, *completion)
        labels = (*(IGNORED for _ in prompt), *completion)
        if len(ids) < 2 or not completion:
            raise DataError(f"{what} has nothing to predict")
        return LabelledSample(ids=ids[-self._max_length :], labels=labels[-self._max_length :], domain=domain)

    def _ids(self, row: Mapping[str, Any], what: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens before and of what is to be predicted."""
        if "input_ids" in row:
            return (), tuple(int(token) for token in row["input_ids"])
        if "prompt" in row and "completion" in row:
            start = self.tokenizer(row["prompt"]).input_ids
            return tuple(start), tuple(self.tokenizer(row["completion"], add_special_tokens=False).input_ids)
        if "messages" in row:
            before = self.tokenizer.apply_chat_template(
                row["messages"][:-1], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            whole = self.tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
            return tuple(before), tuple(whole[len(before) :])
        if "text" in row:
            return (), tuple(self.tokenizer(row["text"]).input_ids)
        raise DataError(f"{what} holds none of `prompt` and `completion`, `messages`, `text` and `input_ids`")


def batches(samples: Sequence[LabelledSample], size: int) -> Iterator[LabelledBatch]:
    """Yield the samples in order, padded on the right."""
    for start in range(0, len(samples), size):
        group = samples[start : start + size]
        length = max(len(sample.ids) for sample in group)
        ids = torch.zeros(len(group), length, dtype=torch.int64)
        mask = torch.zeros(len(group), length, dtype=torch.int64)
        labels = torch.full((len(group), length), IGNORED, dtype=torch.int64)
        for i, sample in enumerate(group):
            ids[i, : len(sample.ids)] = torch.tensor(sample.ids)
            mask[i, : len(sample.ids)] = 1
            if len(sample.labels) == len(sample.ids):
                labels[i, : len(sample.ids)] = torch.tensor(sample.labels)
        classes = all(len(sample.labels) == 1 != len(sample.ids) for sample in group)
        yield LabelledBatch(
            inputs={"input_ids": ids, "attention_mask": mask},
            labels=torch.tensor([sample.labels[0] for sample in group]) if classes else labels,
        )
