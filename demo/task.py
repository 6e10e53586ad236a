"""What a model is taught and scored on: prompts with answers, and prose."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..data.example import IGNORED, Example
from ..data.tokens import tokenize


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and the answers that follow it, one after the other; each answer is right or wrong as a whole."""

    prompt: str
    answers: tuple[str, ...]

    @property
    def text(self) -> str:
        """Prompt and answers as the model reads them."""
        return self.prompt + "".join(self.answers)


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """A target task and general prose to be remembered; no source file serves two of the fields.

    Attributes:
        name: For people, as `part-of-speech tagging`.
        train: To fine-tune and to calibrate on.
        validation: For choosing the settings of the demo; no reported score comes from it.
        test: To score the target task on.
        prose: To score general ability on.
    """

    name: str
    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    prose: tuple[str, ...]


def encode_question(question: Question, tokenizer: Any) -> Example:
    """Return the question as tokens that know which answer they are part of."""
    begins = list(accumulate(map(len, question.answers[:-1]), initial=len(question.prompt)))
    found = tokenize(tokenizer, question.text, begins)
    return Example.of_tokens(found.ids, found.answers)


def encode_prose(text: str, tokenizer: Any, max_tokens: int) -> Example:
    """Return the first `max_tokens` tokens of a text; each but the first is an answer of its own."""
    ids = tokenize(tokenizer, text, (), max_length=max_tokens).ids
    return Example.of_tokens(ids, [IGNORED, *range(len(ids) - 1)])


def write_calibration(questions: Iterable[Question], file: Path) -> Path:
    """Write the questions as JSON lines with a `text` each, which `sculpt calibrate` reads; return the file."""
    lines = [json.dumps({"text": question.text}, ensure_ascii=False) + "\n" for question in questions]
    file.write_text("".join(lines), encoding="utf-8")
    return file
