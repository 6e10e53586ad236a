"""Text to tokens: prompts, completions, chats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..fusion.errors import DataError
from ..live.model import LiveModel
from .likelihood import Prompted
from .rows import Row


class Prompting:
    """Encodes rows for one model.

    Attributes:
        max_length: Of prompt and answer together; prompts are cut at their beginning, as their end matters most.
    """

    def __init__(self, model: LiveModel, max_length: int) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self.max_length = min(max_length, model.max_positions or max_length)

    def prompt(self, row: Row, *, room: int = 0) -> tuple[int, ...]:
        """Return the tokens of a row's `prompt`, text or a list of messages; `room` is left for an answer."""
        chat = row.get("prompt")
        ids = self._chat(chat, row) if isinstance(chat, list) else self.tokenizer(row.text("prompt"))["input_ids"]
        return self._tail(ids or [self._first()], room)

    def completed(self, row: Row, completion: str) -> Prompted:
        """Return the prompt and what should follow it, encoded together where that keeps the prompt's own tokens."""
        wanted: Sequence[int] | None = None
        if not self.model.is_encoder_decoder and isinstance(row.get("prompt"), str):
            alone = self.tokenizer(row.text("prompt"))["input_ids"]
            together = self.tokenizer(row.text("prompt") + completion)["input_ids"]
            if together[: len(alone)] == alone and len(together) > len(alone):
                wanted = together[len(alone) :]
        if wanted is None:
            wanted = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
        if not wanted:
            raise DataError(f"a completion of {row.what} is empty")
        wanted = wanted[: self.max_length - 1]
        return Prompted(prompt=self.prompt(row, room=len(wanted)), wanted=tuple(wanted))

    def windows(self, text: str) -> list[Prompted]:
        """Return a text as windows of `max_length` tokens; every token but a window's first is wanted.

        A tokenizer that begins texts with a token of its own gives that as the first of each window.
        """
        ids = self.tokenizer(text)["input_ids"]
        bare = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        before = ids[: len(ids) - len(bare)] if ids[len(ids) - len(bare) :] == bare else []
        body = bare if before else ids
        size = self.max_length - len(before)
        found = []
        for start in range(0, len(body), size):
            piece = [*before, *body[start : start + size]]
            if len(piece) > 1:
                found.append(Prompted(prompt=(piece[0],), wanted=tuple(piece[1:])))
        return found

    def _tail(self, ids: Sequence[int], room: int) -> tuple[int, ...]:
        if self.model.is_encoder_decoder:
            return tuple(ids[: self.max_length])
        return tuple(ids[-max(1, self.max_length - room) :])

    def _first(self) -> int:
        tokenizer = self.tokenizer
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return 0 if first is None else first

    def _chat(self, messages: list[Any], row: Row) -> list[int]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(f"`prompt` of {row.what} is a chat, but the tokenizer has no chat template")
        try:
            encoded = self.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, add_generation_prompt=True
            )
        except Exception as error:  # templates raise what they like
            raise DataError(f"the chat template refuses {row.what}: {error}") from error
        return list(encoded["input_ids"])
