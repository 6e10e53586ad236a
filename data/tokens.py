"""Text to tokens, and which of them are to be predicted: the one rule, for every command.

Prompt and completion are joined and tokenised as one text, as a model reads them; the tokenizer's special tokens stand
around the whole (`<s> prompt completion </s>`), never in the middle. **A token is part of what its last character is
part of**: one that holds any character of the completion is to be predicted, also where it begins in the prompt. What
the tokenizer puts after the text, an end token, belongs to the last answer; what it puts before is only read. The same
holds for a chat, whose text is what the template makes of it, and which brings its own special tokens. A completion
that would begin the row is led by `<s>`, or by `</s>` where there is none, as nothing is predicted from nothing.

    what is two plus two? ans|wer: four   ->   <s> what … ? [answer] [:] [four] [</s>]

Two things are each command's own. Of what is too long, scores and learned weights keep the answer, calibrating and
training the beginning. And training ends a text that the tokenizer does not end, so that a model learns to stop.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .example import IGNORED


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Token ids in order.

    Attributes:
        answers: For each the number of the answer that it is part of, or `IGNORED`.
        num_lead: How many special tokens stand before the text.
    """

    ids: list[int]
    answers: list[int]
    num_lead: int = 0

    @classmethod
    def all_predicted(cls, ids: Sequence[int], num_lead: int = 0) -> Tokens:
        """Return tokens of one answer."""
        return cls(ids=list(ids), answers=[0] * len(ids), num_lead=num_lead)

    @property
    def prompt(self) -> list[int]:
        """The ids before the first answer."""
        return self.ids[: next((k for k, number in enumerate(self.answers) if number != IGNORED), len(self.ids))]

    def cut(self, start: int, end: int | None = None) -> Tokens:
        """Return the tokens from `start` to `end`."""
        return dataclasses.replace(self, ids=self.ids[start:end], answers=self.answers[start:end])

    def fitted(self, length: int) -> Tokens:
        """Return at most `length` tokens, answers rather than prompt, and of the prompt its special tokens and its end.

        Answers that are too long in themselves lose their end; one token is left before them.
        """
        lead, first = self.num_lead, len(self.prompt)
        before = min(first, max(1, lead))
        ids, answers = self.ids[: first + length - before], self.answers[: first + length - before]
        excess = max(0, len(ids) - length)
        return Tokens(
            ids=ids[:lead] + ids[lead + excess :], answers=answers[:lead] + answers[lead + excess :], num_lead=lead
        )

    def windows(self, length: int) -> Iterator[Tokens]:
        """Yield all tokens in pieces of at most `length`, each begun with the special tokens before the text."""
        lead = self.num_lead
        step = max(1, length - lead)
        for start in range(lead, max(len(self.ids), lead + 1), step):
            end = start + step
            yield Tokens(
                ids=self.ids[:lead] + self.ids[start:end], answers=self.answers[:lead] + self.answers[start:end]
            )


def tokenize(
    tokenizer: Any, text: str, begins: Sequence[int], *, special: bool = True, max_length: int | None = None
) -> Tokens:
    """Return the tokens of a text.

    Args:
        begins: At which character each answer begins, ascending; none where nothing is to be predicted.
        special: Whether the tokenizer puts its special tokens around the text.
        max_length: Of all tokens; the text loses its end, the special tokens stay.
    """
    options: dict[str, Any] = {"add_special_tokens": special}
    if max_length is not None:
        options |= {"truncation": True, "max_length": max_length}
    if not getattr(tokenizer, "is_fast", False):
        return _by_prefixes(tokenizer, text, begins, options)
    encoded = tokenizer(text, return_offsets_mapping=True, **options)
    # Only ends are asked for: byte-level tokenizers leave the space before a word out of its token's offsets.
    ends = [end for _, end in encoded["offset_mapping"]]
    held = [k for k, end in enumerate(ends) if end]
    first, last = (held[0], held[-1]) if held else (lead := _num_lead(tokenizer, special=special), lead - 1)
    answers = [_answer(begins, end) for end in ends[: last + 1]]
    if len(answers) < len(ends):
        # An end token is an empty completion's only token; of a text that was cut it goes with what is left.
        is_whole = not held or not text[ends[last] :].strip()
        answers += [_answer(begins, len(text) + 1) if is_whole else answers[-1]] * (len(ends) - len(answers))
    return Tokens(ids=list(encoded["input_ids"]), answers=answers, num_lead=first)


def _answer(begins: Sequence[int], end: int) -> int:
    number = bisect_left(begins, end) - 1
    return IGNORED if number < 0 else number


def _by_prefixes(tokenizer: Any, text: str, begins: Sequence[int], options: dict[str, Any]) -> Tokens:
    """Return tokens by a tokenizer that does not say where they lie: an answer begins where the text before it ends."""
    ids = list(tokenizer(text, **options)["input_ids"])
    lead = _num_lead(tokenizer, special=options["add_special_tokens"])
    answers = [IGNORED] * len(ids)
    for number, begin in enumerate(begins):
        before = tokenizer(text[:begin], **{**options, "add_special_tokens": False})["input_ids"]
        start = lead + common_length(ids[lead:], before)
        answers[start:] = [number] * (len(ids) - start)
    return Tokens(ids=ids, answers=answers, num_lead=lead)


def _num_lead(tokenizer: Any, *, special: bool) -> int:
    """Return how many special tokens a tokenizer puts before a text."""
    bare, whole = (list(tokenizer("x", add_special_tokens=added)["input_ids"]) for added in (False, special))
    return next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return with how many elements in common two sequences begin."""
    pairs = zip(first, second, strict=False)
    return next((k for k, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
