"""The built-in scorers: a task and a model in, a score in [0, 100] out."""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from typing import Any

from ..data.example import Example
from ..data.row import Row
from ..fusion.errors import DataError, ModelError
from ..live.model import LiveModel
from .captions import caption
from .job import Job, Scored
from .suite import Classification, ExactMatch, MultipleChoice, Perplexity
from .vqa import vqa


def perplexity(task: Perplexity, job: Job) -> Scored:
    """Predict `text`, `completion` after `prompt`, or the last of `messages`."""
    _refuse_headless(job.model)
    wanted: list[Example] = []
    for row in job.rows:
        if "prompt" in row and isinstance(row.get("completion"), str):
            wanted += job.completed(row, row.text("completion"))
        elif job.model.is_encoder_decoder:
            raise DataError(f"{row.what} has no `prompt`, which an encoder–decoder needs")
        else:
            wanted += [example for example in job.encoder.labelled(row) if example.num_predicted]
    if not wanted:
        raise DataError(f"`{job.rows.name}` holds no token to predict")
    found = job.likelihoods(wanted)
    num_tokens = sum(row.num_tokens for row in found)
    loss = -math.fsum(row.log_probability for row in found) / num_tokens
    accuracy = 100 * sum(row.num_first for row in found) / num_tokens
    scores = {
        "accuracy": accuracy,
        "probability": 100 * math.exp(-loss),
        "relative": 100 * (task.reference or 0.0) * math.exp(-loss),
    }
    figures = {"perplexity": _exp(loss), "loss": loss, "accuracy": accuracy, "num_tokens": num_tokens}
    return Scored(score=scores[task.score], num_rows=len(job.rows), figures=figures)


def exact_match(task: ExactMatch, job: Job) -> Scored:
    """Write an answer to `prompt`; right if it is `answer`, or one of several."""
    answers, prompts = [], []
    for row in job.rows:
        answers.append(row.texts("answer"))
        prompts.append(job.encoder.prompt(row, room=task.max_new_tokens))
    written = job.written(task, prompts)

    def form(text: str) -> str:
        text = text.casefold() if task.ignore_case else text
        text = text.translate(str.maketrans("", "", string.punctuation)) if task.ignore_punctuation else text
        return " ".join(text.split())

    right = tuple(form(text) in map(form, wanted) for text, wanted in zip(written, answers, strict=True))
    return Scored(score=100 * sum(right) / len(right), num_rows=len(right), outcomes=right)


def multiple_choice(task: MultipleChoice, job: Job) -> Scored:
    """Choose the likeliest of `choices` after `prompt`; `answer` is the right one's number, from 0, or its text."""
    _refuse_headless(job.model)
    wanted: list[Example] = []
    questions: list[tuple[range, list[str], int]] = []
    for row in job.rows:
        choices = task.choices or row.texts("choices")
        start = len(wanted)
        wanted += [example for choice in choices for example in job.completed(row, choice)]
        questions.append((range(start, len(wanted)), choices, right_choice(row, choices)))
    found = job.likelihoods(wanted)
    right = []
    for places, choices, answer in questions:
        scores = []
        for place, choice in zip(places, choices, strict=True):
            size = {"none": 1, "tokens": found[place].num_tokens, "characters": len(choice)}[task.normalize]
            scores.append(found[place].log_probability / size)
        right.append(max(range(len(scores)), key=scores.__getitem__) == answer)
    counts = [len(choices) for _, choices, _ in questions]
    return Scored(
        score=100 * sum(right) / len(right),
        num_rows=len(right),
        figures={"chance": 100 * math.fsum(1 / count for count in counts) / len(counts)},
        outcomes=tuple(right),
        luck=math.fsum(1 / (count - 1) for count in counts if count > 1) / len(counts),
    )


def right_choice(row: Row, choices: list[str]) -> int:
    """Return the number of the right one of the choices of a row."""
    answer: Any = row.get("answer")
    if isinstance(answer, str) and [choice.strip() for choice in choices].count(answer.strip()) == 1:
        return [choice.strip() for choice in choices].index(answer.strip())
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise DataError(f"`answer` of {row.what} is `{answer}`, which is not one of its {len(choices)} choices")


def classification(_task: Classification, job: Job) -> Scored:
    """Compare the class that a classification head ranks first with `label`: its number or its name."""
    from .classes import classify

    if not job.model.has_classes:
        raise ModelError(
            f"`{type(job.model.model).__name__}` has no classification head",
            hint="`scorer: multiple-choice` with `choices` classifies with a language model",
        )
    rows = list(job.rows)
    right = classify(
        job.model,
        rows,
        batch_size=job.batch_size,
        max_length=job.max_length,
        options=job.encoder.options,
        advance=job.advance,
    )
    return Scored(
        score=100 * sum(right) / len(rows),
        num_rows=len(rows),
        outcomes=tuple(right),
        luck=1 / max(1, job.model.model.config.num_labels - 1),
    )


def _refuse_headless(model: LiveModel) -> None:
    if model.has_classes or model.model.get_output_embeddings() is None:
        raise ModelError(f"`{type(model.model).__name__}` gives no probability to text", hint="use another scorer")


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


SCORERS: dict[str, Callable[..., Scored]] = {
    "perplexity": perplexity,
    "exact-match": exact_match,
    "multiple-choice": multiple_choice,
    "classification": classification,
    "caption": caption,
    "vqa": vqa,
}
