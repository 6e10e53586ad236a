"""The general set as one model sees it: the texts, and questions with the model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import general
from ..data.encoding import Encoder
from ..data.example import Example
from ..data.row import Row
from ..data.rows import Rows, chosen, texts_of_set
from ..fusion.checkpoint import Source
from ..fusion.checkpoint.output.processes import Processes
from ..fusion.errors import DataError
from ..fusion.run.calibration import GENERAL
from ..live.devices import compute_dtype, pick_device, stored_dtype
from ..live.model import LiveModel, fits, load_model
from .answers import Answers

# How many times the tokens that a kind of texts has. Pictures want more weight than text (docs/protecting-the-base.md).
SHARES = {"chats": 4, "images": 8, "sounds": 8}
MEDIA = {"images": "image", "sounds": "audio"}


@contextmanager
def general_rows(
    checkpoint: Source,
    encoder: Encoder,
    *,
    kinds: Sequence[str] = (),
    chats: bool = True,
    seed: int = 0,
    dtype: str = "auto",
    load: Callable[[], AbstractContextManager[LiveModel]],
    at_once: int | None = None,
    processes: Processes | None = None,
    answering: Callable[[int], None] = lambda _answers: None,
) -> Iterator[Rows]:
    """Give the rows of the general set for a model, which answers the questions among them as they are read.

    Args:
        encoder: Of the model.
        kinds: Which; all that suit the model where none is named.
        chats: Whether the model is to answer questions; else the texts alone.
        seed: What rows will be drawn by: questions are answered in that order, many at once.
        dtype: What `load` loads the model in.
        load: Gives the model as it runs, for the first answer that is not known.
        at_once: How many questions are answered at once; what is best for many where it is not given.
        processes: That have met, and all draw from the same rows: they share the answering.
        answering: Told how many questions have been answered.

    Raises:
        DataError: There is no such kind, or one that is named does not suit the model.
    """
    texts = texts_of_set(kinds)
    asked = {kind: general.asked(kind) for kind in _asked_of(encoder, kinds, chats=chats)}
    if not asked:
        yield texts
        return
    ranges, questions, order = dict(texts.kinds), [], {}
    for kind, rows in asked.items():
        drawn = [len(questions) + k for k in chosen(len(rows), len(rows), seed)]
        order |= dict.fromkeys(drawn, drawn)
        ranges[kind] = range(texts.count + len(questions), texts.count + len(questions) + len(rows))
        questions += rows
    told = {"model": checkpoint.resume_key(), "beside": checkpoint.companions_key(), "dtype": dtype}
    with Answers(told, load, at_once, processes) as answers:
        own = _Own(answers, questions, order, encoder.unlimited(), answering)

        def read(number: int) -> Mapping[str, Any]:
            return texts.read(number) if number < texts.count else own.answered(number - texts.count)

        count = texts.count + len(questions)
        yield replace(texts, count=count, read=read, kinds=ranges, shares=SHARES)


def load_to_answer(
    checkpoint: Source, *, device: str, dtype: str, auto_class: str | None, trust_remote_code: bool
) -> LiveModel:
    """Return a model that is to write: where it fits in memory no other way, in the dtype that it is stored in."""
    kind = compute_dtype(dtype, checkpoint, pick_device(device))
    if dtype == "auto" and not fits(checkpoint, kind, pick_device(device)):
        kind = stored_dtype(checkpoint)
    return load_model(checkpoint, device=device, dtype=kind, auto_class=auto_class, trust_remote_code=trust_remote_code)


def _asked_of(encoder: Encoder, names: Sequence[str], *, chats: bool) -> list[str]:
    """Return the kinds of questions that a model is asked.

    Raises:
        DataError: One is named that the model cannot be asked, or that is not to be asked.
    """
    found = []
    for kind in general.ASKED:
        reason = _why_not(encoder, kind)
        if kind in names and not chats:
            raise DataError(
                f"`{kind}` needs answers of the model, and answers are switched off",
                hint="leave out the kind, or the option that switches them off",
            )
        if kind in names and reason is not None:
            raise DataError(
                f"`{kind}` of the general set do not suit `{type(encoder.model).__name__}`, {reason}",
                hint="kinds of text suit it",
            )
        if chats and reason is None and (kind in names or not names):
            found.append(kind)
    return found


def _why_not(encoder: Encoder, kind: str) -> str | None:
    """Return why a model cannot be asked questions of a kind; None where it can."""
    if not encoder.model.can_generate():
        return "which writes no text"
    if kind in MEDIA:
        return encoder.processed.why_not(MEDIA[kind])
    return "which has no chat template" if encoder.texts.template is None else None


class _Own:
    """Questions with the model's own answers.

    Args:
        order: By question, the numbers of those of its kind, in the order in which they will be wanted.
    """

    def __init__(
        self,
        answers: Answers,
        questions: Sequence[Mapping[str, Any]],
        order: Mapping[int, Sequence[int]],
        encoder: Encoder,
        answering: Callable[[int], None],
    ) -> None:
        self._answers = answers
        self._questions = questions
        self._order = order
        self._encoder = encoder
        self._answering = answering
        self._known: dict[int, str] = {}

    def answered(self, number: int) -> Mapping[str, Any]:
        """Return a question with its answer; some of those that come after it are answered with it."""
        if number not in self._known:
            answer = self._answers.known(self._prompt(number))
            if answer is None:
                order = self._order[number]
                new = [k for k in order[order.index(number) :] if k not in self._known][: self._answers.at_once]
                self._known |= dict(zip(new, self._answers.to([*map(self._prompt, new)]), strict=True))
            else:
                self._known[number] = answer
            self._answering(len(self._known))
        return {**self._questions[number], "completion": self._known[number]}

    def _prompt(self, number: int) -> Example:
        row = Row(self._questions[number], f"question {number + 1} of `{GENERAL}`", Path())
        return self._encoder.prompt(row, room=0)
