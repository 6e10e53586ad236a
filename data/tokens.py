"""Text to tokens, and which of them are to be predicted: the one rule, for every command.

Prompt and completion are joined and tokenised as one text, as a model reads them; the tokenizer's special tokens stand
around the whole (`<s> prompt completion </s>`), never in the middle. **A token is part of what its last character is
part of**: one that holds any character of the completion is to be predicted, also where it begins in the prompt. What
the tokenizer puts after the text, an end token, belongs to the last answer; what it puts before is only read. The same
holds for a chat, whose text is what the template makes of it, and which brings its own special tokens. A completion
that would begin the row is led by `<s>`, or by `</s>` where there is none, as nothing is predicted from nothing.

    what is two plus two? ans|wer: four   ->   <s> what … ? [answer] [:] [four] [</s>]

Two things are each command's own. Calibrating and training end a text that the tokenizer does not end, so that a
model learns to stop. And scores are those of lm-evaluation-harness, to compare with: there the white space that a
prompt ends in is foretold with the completion, and as many tokens are only read as the rest of the prompt has alone.
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

    def fitting(self, length: int) -> list[int]:
        """Return the places of at most `length` tokens: answers rather than prompt, and of the prompt lead and end.

        Answers that are too long in themselves lose their end; one token is left before them.
        """
        lead, first = self.num_lead, len(self.prompt)
        before = min(first, max(1, lead))
        end = min(len(self.ids), first + length - before)
        excess = max(0, end - length)
        return [*range(lead), *range(lead + excess, end)]

    def at(self, places: Sequence[int]) -> Tokens:
        """Return the tokens at these places."""
        ids, answers = ([values[place] for place in places] for values in (self.ids, self.answers))
        return dataclasses.replace(self, ids=ids, answers=answers)

    def ended(self, end: int | None) -> Tokens:
        """Return the tokens with an end that is to be predicted, if they do not end in it.

        A model that is trained on plain text must learn to stop, and many tokenizers leave the end to the trainer;
        scoring adds nothing to what the tokenizer makes of a text.
        """
        if end is None or not self.ids or self.ids[-1] == end:
            return self
        return dataclasses.replace(self, ids=[*self.ids, end], answers=[*self.answers, max(0, *self.answers)])

    def windows(self, length: int, *, most: int | None = None) -> Iterator[Tokens]:
        """Yield all tokens in pieces of at most `length`, each begun with the special tokens before the text.

        Args:
            most: How many pieces; None is all.
        """
        lead = self.num_lead
        step = max(1, length - lead)
        for start in [*range(lead, max(len(self.ids), lead + 1), step)][:most]:
            end = start + step
            yield Tokens(
                ids=self.ids[:lead] + self.ids[start:end], answers=self.answers[:lead] + self.answers[start:end]
            )


def tokenize_as_harness(tokenizer: Any, prompt: str, completion: str) -> Tokens:
    """Return a prompt and its completion as lm-evaluation-harness reads and scores them."""
    read = prompt.rstrip()
    found = tokenize(tokenizer, prompt + completion, (len(read),))
    if not read:
        return found
    # The harness takes what a tokenizer puts after a prompt alone for part of the prompt, which it is not.
    count = len(tokenize(tokenizer, read, ()).ids) - _num_around(tokenizer, special=True)[1]
    return dataclasses.replace(found, answers=([IGNORED] * count + [0] * len(found.ids))[: len(found.ids)])


def tokenize(
    tokenizer: Any, text: str, begins: Sequence[int], *, special: bool = True, max_length: int | None = None
) -> Tokens:
    """Return the tokens of a text.

    Args:
        begins: At which character each answer begins, ascending; none where nothing is to be predicted.
        special: Whether the tokenizer puts its special tokens around the text.
        max_length: Of all tokens; the text loses its end, the special tokens stay.
    """
    first = getattr(tokenizer, "bos_token", None)  # a text that brings it brings all special tokens, as a chat does
    options: dict[str, Any] = {"add_special_tokens": special and not (first and text.startswith(first))}
    if max_length is not None:
        options |= {"truncation": True, "max_length": max_length}
    if not getattr(tokenizer, "is_fast", False):
        return _by_prefixes(tokenizer, text, begins, options)
    encoded = tokenizer(text, return_offsets_mapping=True, **options)
    # Only ends are asked for: byte-level tokenizers leave the space before a word out of its token's offsets.
    ends = [end for _, end in encoded["offset_mapping"]]
    held = [k for k, end in enumerate(ends) if end]
    first, last = (held[0], held[-1]) if held else (lead := _num_around(tokenizer, special=special)[0], lead - 1)
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
    lead, _ = _num_around(tokenizer, special=options["add_special_tokens"])
    answers = [IGNORED] * len(ids)
    for number, begin in enumerate(begins):
        before = tokenizer(text[:begin], **{**options, "add_special_tokens": False})["input_ids"]
        start = lead + common_length(ids[lead:], before)
        answers[start:] = [number] * (len(ids) - start)
    return Tokens(ids=ids, answers=answers, num_lead=lead)


def _num_around(tokenizer: Any, *, special: bool) -> tuple[int, int]:
    """Return how many special tokens a tokenizer puts before a text and after it."""
    bare, whole = (list(tokenizer("x", add_special_tokens=added)["input_ids"]) for added in (False, special))
    lead = next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)
    return lead, len(whole) - len(bare) - lead


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return with how many elements in common two sequences begin."""
    pairs = zip(first, second, strict=False)
    return next((k for k, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
