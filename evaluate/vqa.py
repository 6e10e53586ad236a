"""VQA accuracy: an answer counts by how many people gave it, `min(people/3, 1)`.

Antol et al., VQA: Visual Question Answering, ICCV 2015. Answers are compared in the form of its evaluation code: lower
case, number words as digits, without articles and punctuation. Where that puts missing apostrophes back by a list of
contractions, they are left out here on both sides, which makes the same answers equal.
"""

from __future__ import annotations

import re
from math import fsum
from typing import Any

from ..data.row import Row
from ..fusion.errors import DataError
from ..predict.generation import generate
from .scorers import Job, Scored
from .suite import Vqa

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
ARTICLES = ("a", "an", "the")
MARKS = ';/[]"{}()=+\\_-><@`,?!'
RIGHT = 0.5  # from which score on an answer is right, where it is to be right or wrong
ENOUGH = 3  # people who give an answer make it right


def plain_answer(text: str) -> str:
    """Return an answer in the form in which answers are compared."""
    text = " ".join(text.lower().split())
    has_thousands = re.search(r"\d,\d", text) is not None
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if beside_space or has_thousands else " ")
    text = re.sub(r"\.(?!\d)", "", text).replace("'", "").replace("’", "")
    return " ".join(DIGITS.get(word, word) for word in text.split() if word not in ARTICLES)


def vqa_accuracy(answer: str, people: list[str]) -> float:
    """Return `min(number of people who gave the answer / 3, 1)`."""
    plain = plain_answer(answer)
    return min(sum(plain_answer(other) == plain for other in people) / ENOUGH, 1.0)


def vqa(task: Vqa, job: Job) -> Scored:
    """Write an answer to `prompt`, of its `image`, and compare it with all of `answers`."""
    people, prompts = [], []
    for row in job.rows:
        people.append(people_of(row))
        prompts.append(job.encoder.prompt(row, room=task.max_new_tokens))
    written = generate(
        job.model,
        prompts,
        max_new_tokens=task.max_new_tokens,
        stop=task.stop,
        batch_size=job.batch_size,
        advance=job.advance,
    )
    scores = [vqa_accuracy(text, own) for text, own in zip(written, people, strict=True)]
    return Scored(
        score=100 * fsum(scores) / len(scores), num_rows=len(scores), outcomes=tuple(score >= RIGHT for score in scores)
    )


def people_of(row: Row) -> list[str]:
    """Return what people answered: texts, or objects with an `answer`, as the data set's annotations have."""
    given: Any = row.get("answers")
    found = [one.get("answer") if isinstance(one, dict) else one for one in given] if isinstance(given, list) else []
    texts = [one for one in found if isinstance(one, str)]
    if len(texts) < max(ENOUGH, len(found)):
        raise DataError(
            f"`answers` of {row.what} must be a list of at least {ENOUGH} people's answers",
            hint="`scorer: exact-match` compares with one answer, or any of several",
        )
    return texts
