"""Rows of text to tokens, and tokens to the inputs of a model with one stack or with two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..fusion.checkpoint.pretrained import load_pretrained
from ..fusion.errors import DataError
from .chats import render, render_marked
from .example import IGNORED
from .row import Row
from .tokens import Tokens, tokenize

KINDS = "`text`, `messages`, `prompt` and `completion`, `input_ids`, `image` or `audio`"
Inputs = dict[str, Tensor]


class Texts:
    """Turns text into samples for one model.

    Attributes:
        folder: Of the tokenizer.
        config: Of the model.
        arguments: Of the model's forward.
        max_length: Longer samples are cut; no more than the model has positions for.
        keeps_answers: See `Encoder`.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        arguments: frozenset[str],
        *,
        max_length: int,
        keeps_answers: bool,
        trust_remote_code: bool,
    ) -> None:
        self.folder = folder
        self.config = model.config
        self.arguments = arguments
        self.keeps_answers = keeps_answers
        self.trust_remote_code = trust_remote_code
        limit = num_positions(model)
        self.max_length = max_length if limit is None else min(max_length, limit)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's folder."""
        from transformers import AutoTokenizer

        return self.from_folder(AutoTokenizer, "tokenizer")

    def from_folder(self, auto: Any, what: str) -> Any:
        """Return what a transformers Auto class loads from the model's folder.

        Raises:
            ModelError: There is none.
        """
        hint = "rows of `input_ids` need none" if what == "tokenizer" else None
        return load_pretrained(auto, self.folder, what, trust_remote_code=self.trust_remote_code, hint=hint)

    def read(self, row: Row) -> Iterator[tuple[Tokens, Tokens | None]]:
        """Yield the row's tokens, and for an encoder–decoder with prompt and completion those of the completion."""
        chat = row.messages
        if chat is not None:
            text, begins = render_marked(self._templated(row), *chat, row.what)
            yield self._fitted(self._chat(text, begins)), None
        elif "prompt" in row and "completion" in row:
            yield self._prompted(row)
        elif "text" in row:
            yield from ((tokens, None) for tokens in self._running(row))
        else:
            raise DataError(f"{row.what} holds {row.names}; expected {KINDS}")

    def _prompted(self, row: Row) -> tuple[Tokens, Tokens | None]:
        prompt, completion = row.get("prompt"), row.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError(f"`prompt` and `completion` of {row.what} must both be text, or both lists of messages")
        if self.config.is_encoder_decoder:
            return self.cut(prompt), self.cut(completion)
        limit = None if self.keeps_answers else self.max_length
        found = tokenize(self.tokenizer, prompt + completion, (len(prompt),), max_length=limit)
        return self._fitted(self._led(found) if found.ids else found), None

    def _running(self, row: Row) -> Iterator[Tokens]:
        """Yield the pieces of a text, all of which is to be predicted."""
        whole = row.is_document or self.keeps_answers
        found = tokenize(self.tokenizer, row.text("text"), (0,), max_length=None if whole else self.max_length)
        # Calibration cuts running text at every `max_length` tokens; for scores each piece begins as a text does.
        lead = found.num_lead if self.keeps_answers else 0
        yield from Tokens.all_predicted(found.ids, lead).windows(self.max_length)

    def cut(self, text: str) -> Tokens:
        """Return the tokens of a text, all of one answer, cut to the longest length."""
        return Tokens.all_predicted(tokenize(self.tokenizer, text, (0,), max_length=self.max_length).ids)

    def prompt(self, row: Row, room: int) -> list[int]:
        """Return the tokens of a prompt to be answered, as the same prompt and an answer would begin.

        A prompt that leaves less `room` for the answer than asked for loses its beginning.
        """
        chat = row.chat("prompt") if isinstance(row.get("prompt"), list) else None
        if chat is not None:
            text = render(self._templated(row), chat, row.what, add_generation_prompt=True)
            found = self._chat(text, ())
        elif self.config.is_encoder_decoder:
            return self.cut(row.text("prompt")).ids
        else:
            found = tokenize(self.tokenizer, row.text("prompt"), (len(row.text("prompt")),))
        found = self._led(found.cut(0, len(found.prompt)))
        excess = max(0, len(found.ids) - max(1, self.max_length - room))
        lead = min(found.num_lead, len(found.ids) - excess)
        return found.ids[:lead] + found.ids[lead + excess :]

    def _templated(self, row: Row) -> Any:
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                f"{row.what} holds messages, but the tokenizer in `{self.folder}` has no chat template",
                hint="rows of `text` need none",
            )
        return self.tokenizer

    def _chat(self, text: str, begins: Sequence[int]) -> Tokens:
        """Return the tokens of a rendered chat, which brings its own special tokens."""
        found = tokenize(self.tokenizer, text, begins, special=False)
        is_led = found.ids[:1] == [self.tokenizer.bos_token_id]
        return Tokens(ids=found.ids, answers=found.answers, num_lead=int(is_led))

    def _fitted(self, tokens: Tokens) -> Tokens:
        return tokens.fitted(self.max_length) if self.keeps_answers else tokens.cut(0, self.max_length)

    def _led(self, tokens: Tokens) -> Tokens:
        """Return the tokens with one before them where an answer has none: a model predicts nothing from nothing."""
        if tokens.prompt:
            return tokens
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0)
        first = next(token for token in known if token is not None)
        return Tokens(ids=[first, *tokens.ids], answers=[IGNORED, *tokens.answers], num_lead=1)

    def inputs_of(self, tokens: Tokens, completion: Tokens | None) -> Iterator[tuple[Inputs, Tokens]]:
        """Yield the inputs for tokens and what the decoder goes through, nothing for none.

        Of a lone text an encoder–decoder gets half each.
        """
        if self.config.is_encoder_decoder and completion is None:
            half = -(-len(tokens.ids) // 2)
            tokens, completion = tokens.cut(0, half), tokens.cut(half)
        if not tokens.ids:
            return
        ids = torch.tensor([tokens.ids], dtype=torch.int64)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        yield inputs, self.with_decoder(inputs, completion) or tokens

    def with_decoder(self, inputs: Inputs, completion: Tokens | None) -> Tokens | None:
        """Add the decoder's inputs, its start token, then the completion but for its end; return what it goes through.

        None for a model whose decoder takes no other inputs.
        """
        if "decoder_input_ids" in inputs:
            return Tokens.all_predicted(inputs["decoder_input_ids"][0].tolist())
        if "decoder_input_ids" not in self.arguments:
            return None
        config = self.config.get_text_config(decoder=True)
        first = next(
            value
            for value in (
                getattr(self.config, "decoder_start_token_id", None),
                getattr(config, "decoder_start_token_id", None),
                getattr(config, "bos_token_id", None),
                getattr(config, "pad_token_id", None),
                0,
            )
            if value is not None
        )
        tokens = completion or Tokens(ids=[], answers=[])
        has_end = bool(tokens.ids) and tokens.ids[-1] == getattr(config, "eos_token_id", None)
        if tokens.ids[: len(tokens.ids) - has_end][:1] != [first]:
            tokens = Tokens(ids=[first, *tokens.ids], answers=[IGNORED, *tokens.answers])
        given = tokens.ids[: len(tokens.ids) - has_end][: self.max_length]
        inputs["decoder_input_ids"] = torch.tensor([given], dtype=torch.int64)
        return tokens.cut(0, len(given) + 1)


def num_positions(model: Any) -> int | None:
    """Return the longest input that a model has positions for, where it says."""
    text = model.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    # RoBERTa counts positions from after the padding index.
    offset = (getattr(text, "pad_token_id", None) or 0) + 1 if _counts_from_padding(model) else 0
    return limit - offset


def _counts_from_padding(model: Any) -> bool:
    return any(
        name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    )
