"""Rows of training data as inputs with labels: only the completion is to be predicted.

What a row may hold is what `hessian.encoding` reads: `prompt` and `completion`, `messages` (the last one, the
assistant's, is the completion), `text` or `input_ids` (all of it is), with images to any but the last.

Which tokens are the completion's is found without knowing the model's template: the row is encoded a second time with
another completion in its place, and what both begin with comes before it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from ..data.batching import PADDED, Sample
from ..data.encoding import READY_MADE, Encoder
from ..data.rows import Rows
from ..fusion.errors import DataError
from ..fusion.progress import Progress, silent

logger = logging.getLogger(__name__)

IGNORED = -100
PADDING = {**PADDED, "mm_token_type_ids": 0, "labels": IGNORED}
Features = dict[str, Tensor]


@final
class Examples(torch.utils.data.Dataset[Features]):
    """The samples of a data file.

    Text is encoded at once, so that what is wrong with it shows before training; rows with images when they are needed.

    Attributes:
        left_out: How many samples had nothing to predict within the longest length.

    Raises:
        DataError: A row suits the model not, or nothing is left.
    """

    def __init__(self, rows: Rows, encoder: Encoder, report: Progress = silent) -> None:
        self._rows, self._encoder = rows, encoder
        self._found: list[Features | int] = []
        self.left_out = 0
        for number in range(rows.count):
            report(number, rows.count, "")
            if has_images(rows.read(number)):
                self._found.append(number)
                continue
            every = self._features(number)
            useful = [one for one in every if (one["labels"][:, 1:] != IGNORED).any()]
            self.left_out += len(every) - len(useful)
            self._found += useful
        if self.left_out:
            logger.warning("%d samples of `%s` have nothing to predict and were left out", self.left_out, rows.name)
        if not self._found:
            raise DataError(
                f"`{rows.name}` gives nothing to predict within {encoder.max_length} tokens",
                hint="raise `--max-length`",
            )

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> Features:
        found = self._found[index]
        return self._features(found)[0] if isinstance(found, int) else found

    def _features(self, number: int) -> list[Features]:
        row = {key: value for key, value in self._rows.read(number).items() if value is not None}
        what = f"row {number + 1} of `{self._rows.name}`"
        other = with_other_completion(row, what)
        samples = list(self._encoder.samples(self._rows, number))
        if other is not None:
            elsewhere = dataclasses.replace(self._rows, read=lambda _number: other)
            (second,) = list(self._encoder.samples(elsewhere, number)) or [None]
            return [self._labelled(sample, second, row, what) for sample in samples]
        return [self._labelled(sample, None, row, what) for sample in samples]

    def _labelled(self, sample: Sample, other: Sample | None, row: Mapping[str, Any], what: str) -> Features:
        inputs = dict(sample.inputs)
        if "input_ids" not in inputs or "decoder_input_ids" in inputs:
            raise DataError(f"{what} gives no text that a decoder could learn to continue")
        templated = "messages" in row or isinstance(row.get("prompt"), list)
        if not (templated or self._rows.documents or "input_ids" in row or has_images(row)):
            inputs = self._ended(inputs)
        ids = inputs["input_ids"]
        labels = ids.clone()
        if other is not None:
            labels[:, : common_length(ids[0], other.inputs["input_ids"][0])] = IGNORED
        for name in ("image_token_id", "image_token_index", "video_token_id"):
            token = getattr(self._encoder.config, name, None)
            if isinstance(token, int):
                labels[ids == token] = IGNORED
        return {**inputs, "labels": labels}

    def _ended(self, inputs: Features) -> Features:
        """Return the inputs with the token that ends a text, which templates bring along and plain text lacks."""
        end = getattr(self._encoder.texts.tokenizer, "eos_token_id", None)
        ids = inputs["input_ids"]
        if end is None or ids.shape[1] >= self._encoder.max_length or int(ids[0, -1]) == end:
            return inputs
        last = {"input_ids": end, "attention_mask": 1}
        return {
            key: torch.cat([value, value.new_full((1, 1), last.get(key, 0))], dim=1) if key in PADDED else value
            for key, value in inputs.items()
        }


def has_images(row: Mapping[str, Any]) -> bool:
    """Return whether a row names images, which are not to be decoded before they are needed."""
    if row.get("images", row.get("image")) is not None:
        return True
    messages = row.get("messages")
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)


def with_other_completion(row: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    """Return the row with another completion, or an empty one; None where all of it is to be predicted."""
    if any(key in row for key in READY_MADE):
        return None
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not messages or not isinstance(messages[-1], Mapping):
            raise DataError(f"`messages` of {what} is no list of messages")
        if messages[-1].get("role") != "assistant":
            raise DataError(f"the last message of {what} is not the assistant's, so there is nothing to learn from it")
        return {**row, "messages": [*messages[:-1], _other_message(messages[-1])]}
    if "prompt" not in row or "completion" not in row:
        return None
    completion = row["completion"]
    if isinstance(completion, list):
        if not completion or not isinstance(completion[-1], Mapping):
            raise DataError(f"`completion` of {what} is no list of messages")
        return {**row, "completion": [_other_message(completion[0])]}
    # Plain text is compared with the prompt alone; a processor's template would leave out the assistant's turn.
    return {**row, "completion": _other_text(str(completion)) if has_images(row) else ""}


def _other_message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        texts = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
        other: Any = [{"type": "text", "text": _other_text(texts)}]
    else:
        other = _other_text(str(content or ""))
    return {"role": message.get("role"), "content": other}


def _other_text(text: str) -> str:
    """Return a word that begins otherwise, after the same white space."""
    word = text.lstrip()
    return text[: len(text) - len(word)] + ("0" if word[:1].isalpha() else "x")


def common_length(first: Tensor, second: Tensor) -> int:
    """Return how many tokens two samples begin with in common."""
    length = min(len(first), len(second))
    differs = (first[:length] != second[:length]).nonzero()
    return int(differs[0]) if len(differs) else length


def collate(features: Sequence[Features]) -> Features:
    """Return one batch: tokens padded on the right, images one after another.

    Raises:
        DataError: Images of the batch have different sizes.
    """
    batch: Features = {}
    for key in dict.fromkeys(key for one in features for key in one):
        values = [one[key] for one in features if key in one]
        if key in PADDING:
            length = max(one["input_ids"].shape[1] for one in features)
            rows = torch.full((len(features), length), PADDING[key], dtype=values[0].dtype)
            for row, one in enumerate(features):
                if key in one:
                    rows[row, : one[key].shape[1]] = one[key][0]
            batch[key] = rows
            continue
        try:
            batch[key] = torch.cat(values)
        except RuntimeError as error:
            raise DataError(f"`{key}` has different sizes within a batch", hint="`--batch-size 1`") from error
    return batch
