"""What a model is taught and scored on: prompts with answers, and prose."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and the answers that follow it, one after the other; each answer is right or wrong as a whole."""

    prompt: str
    answers: tuple[str, ...]

    @property
    def text(self) -> str:
        """Prompt and answers as the model reads them."""
        return self.prompt + "".join(self.answers)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A target task and general prose to be remembered; no source file serves two of the fields.

    Attributes:
        name: For people, as `part-of-speech tagging`.
        train: To fine-tune and to calibrate on.
        validation: For choosing the settings of the demo; no reported score comes from it.
        test: To score the target task on.
        prose: To score general ability on.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    prose: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded token rows, and which answer each token belongs to.

    Attributes:
        input_ids: (rows, length), padded on the right.
        attention_mask: 1 on real tokens.
        answer: The index, over the batch, of the answer that a token is part of; `IGNORED` on prompts and padding.
        num_answers: How many answers there are.
    """

    input_ids: Tensor
    attention_mask: Tensor
    answer: Tensor
    num_answers: int

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return int(self.attention_mask.sum())


@dataclass(frozen=True, kw_only=True)
class Row:
    """One encoded example or text: token ids, and the answer index of each (`IGNORED` on the prompt)."""

    ids: tuple[int, ...]
    answer: tuple[int, ...]


def encode_example(example: Example, tokenizer: Any) -> Row:
    """Return the example as tokens; prompt and answers are encoded apart, so no token spans two of them."""
    ids: list[int] = list(tokenizer.encode(example.prompt, add_special_tokens=False))
    answer = [IGNORED] * len(ids)
    for index, text in enumerate(example.answers):
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        answer += [index] * len(piece)
    return Row(ids=tuple(ids), answer=tuple(answer))


def encode_prose(text: str, tokenizer: Any, max_tokens: int) -> Row:
    """Return the first `max_tokens` tokens of a text; every token after the first is an answer of its own."""
    ids = tokenizer.encode(text, add_special_tokens=False)[:max_tokens]
    return Row(ids=tuple(ids), answer=(IGNORED, *range(len(ids) - 1)))


def batches(rows: Sequence[Row], size: int) -> Iterator[Batch]:
    """Yield the rows in batches of like length, so that little is padding; the order is by length, then as given."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for start in range(0, len(ordered), size):
        yield collate(ordered[start : start + size])


def collate(rows: Sequence[Row]) -> Batch:
    """Return one batch of the rows, padded with token 0, which the attention mask hides."""
    length = max(len(row.ids) for row in rows)
    input_ids = torch.zeros((len(rows), length), dtype=torch.long)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    answer = torch.full((len(rows), length), IGNORED)
    num_answers = 0
    for place, row in enumerate(rows):
        end = len(row.ids)
        input_ids[place, :end] = torch.tensor(row.ids)
        attention_mask[place, :end] = 1
        own = torch.tensor(row.answer)
        answer[place, :end] = torch.where(own == IGNORED, IGNORED, own + num_answers)
        num_answers += max(row.answer, default=-1) + 1
    return Batch(input_ids=input_ids, attention_mask=attention_mask, answer=answer, num_answers=num_answers)


def write_calibration(examples: Iterable[Example], file: Path) -> Path:
    """Write the examples as JSON lines with a `text` each, which `sculpt calibrate` reads; return the file."""
    lines = [json.dumps({"text": example.text}, ensure_ascii=False) + "\n" for example in examples]
    file.write_text("".join(lines), encoding="utf-8")
    return file
