"""Rows of text to tokens, and tokens to the inputs of a model with one stack or with two."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..fusion.checkpoint.pretrained import is_encoder_decoder, load_pretrained
from ..fusion.errors import DataError, SculptError
from ..fusion.rows import RowOptions
from .chats import Template
from .example import IGNORED
from .fit import Fit
from .long_text import ids_of_long_text
from .row import Row
from .tokens import Tokens, tokenize, tokenize_as_harness

KINDS = "`text`, `messages`, `prompt` and `completion`, `input_ids`, `image` or `audio`"
Inputs = dict[str, Tensor]


class Texts:
    """Turns text into samples for one model.

    Attributes:
        folder: Of the tokenizer.
        config: Of the model.
        arguments: Of the model's forward.
        fit: The longest length, no more than the model has positions for.
        for_scores, ends_texts: See `Encoder`.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        arguments: frozenset[str],
        *,
        max_length: int,
        options: RowOptions,
        for_scores: bool,
        ends_texts: bool,
        trust_remote_code: bool,
    ) -> None:
        self.folder = folder
        self.config = model.config
        self.arguments = arguments
        self.options = options
        self.for_scores = for_scores
        self.ends_texts = ends_texts and not is_encoder_decoder(model.config)
        self.trust_remote_code = trust_remote_code
        limit = num_positions(model)
        length = max_length if limit is None else min(max_length, limit)
        self.fit = Fit(length=length, too_long=options.too_long)

    @property
    def max_length(self) -> int:
        """The longest length."""
        return self.fit.length

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's folder."""
        from transformers import AutoTokenizer

        return self.from_folder(AutoTokenizer, "tokenizer")

    @cached_property
    def processor(self) -> Any:
        """The processor in the model's folder, which handles images, video and sound with text."""
        from transformers import AutoProcessor

        return self.from_folder(AutoProcessor, "processor")

    @cached_property
    def has_processor(self) -> bool:
        """Whether the folder has a processor of text with something else."""
        named = ("processor_config.json", "preprocessor_config.json")
        if not any((self.folder / name).is_file() for name in named):
            return False
        try:
            return hasattr(self.processor, "tokenizer")
        except SculptError:  # rows that need it say so
            return False

    @cached_property
    def template(self) -> Template | None:
        """The chat template of rows of text; None where the model has none."""
        if self.has_processor and getattr(self.processor, "chat_template", None):
            return Template.of(self.processor, self.options)
        if getattr(self.tokenizer, "chat_template", None):
            return Template.of(self.tokenizer, self.options)
        return None

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
            messages, first = chat
            template = self.template_for(row)
            messages = template.spelled(row, messages)
            text, begins = template.render_marked(row, messages, first)
            yield self._fitted(self._chat(text, begins), row.what), None
        elif "prompt" in row and "completion" in row:
            yield self._prompted(row)
        elif "text" in row:
            yield from ((tokens, None) for tokens in self._running(row))
        else:
            raise DataError(f"{row.what} holds {row.names}; expected {KINDS}")

    def _prompted(self, row: Row) -> tuple[Tokens, Tokens | None]:
        if not all(isinstance(row.get(key), str) for key in ("prompt", "completion")):
            raise DataError(f"`prompt` and `completion` of {row.what} must both be text, or both lists of messages")
        prompt, completion = row.text("prompt"), row.text("completion")
        if is_encoder_decoder(self.config):
            if self.for_scores:  # as lm-evaluation-harness scores it
                read = prompt.rstrip()
                said = tokenize(self.tokenizer, prompt[len(read) :] + completion, (0,), special=False)
                return self.cut(read, row.what), Tokens.all_predicted(said.ids[: self.max_length])
            return self.cut(prompt, row.what), self.cut(completion, row.what)
        if self.for_scores:
            found = tokenize_as_harness(self.tokenizer, prompt, completion)
        else:
            found = self._ended(tokenize(self.tokenizer, prompt + completion, (len(prompt),)))
        return self._fitted(self._led(found) if found.ids else found, row.what), None

    def _running(self, row: Row) -> Iterator[Tokens]:
        """Yield the pieces of a text, all of which is to be predicted."""
        text = row.text("text")
        if row.is_document and not self.for_scores:  # calibration and training cut it at every `max_length` tokens
            yield from self.pieces_of(self.document_ids(row))
            return
        found = tokenize(self.tokenizer, text, (0,))
        if self.for_scores:  # each piece begins as a text does
            yield from Tokens.all_predicted(found.ids, found.num_lead).windows(self.max_length)
        else:
            if self.fit.exceeds(len(found.ids), row.what):
                found = tokenize(self.tokenizer, text, (0,), max_length=self.max_length)
            yield from self._ended(Tokens.all_predicted(found.ids)).windows(self.max_length, most=1)

    def document_ids(self, row: Row) -> array[int]:
        """Return the tokens of running text."""
        return ids_of_long_text(self.tokenizer, row.text("text"))

    def pieces_of(self, ids: Sequence[int]) -> Iterator[Tokens]:
        """Yield the samples of running text."""
        for start in range(0, len(ids), self.max_length):
            yield Tokens.all_predicted(ids[start : start + self.max_length])

    def _ended(self, tokens: Tokens) -> Tokens:
        return tokens.ended(getattr(self.tokenizer, "eos_token_id", None)) if self.ends_texts else tokens

    def cut(self, text: str, what: str) -> Tokens:
        """Return the tokens of a text, all of one answer, cut to the longest length."""
        found = tokenize(self.tokenizer, text, (0,))
        if self.fit.exceeds(len(found.ids), what):
            found = tokenize(self.tokenizer, text, (0,), max_length=self.max_length)
        return Tokens.all_predicted(found.ids)

    def prompt(self, row: Row, room: int) -> list[int]:
        """Return the tokens of a prompt to be answered, as the same prompt and an answer would begin.

        A prompt that leaves less `room` for the answer than asked for loses its beginning.
        """
        chat = row.prompt_messages
        if chat is not None:
            template = self.template_for(row)
            text = template.render(row, template.spelled(row, chat), add_generation_prompt=True)
            found = self._chat(text, ())
        elif is_encoder_decoder(self.config):
            return self.cut(row.text("prompt"), row.what).ids
        else:
            found = tokenize(self.tokenizer, row.text("prompt"), (len(row.text("prompt")),))
        found = self._led(found.cut(0, len(found.prompt)))
        excess = max(0, len(found.ids) - max(1, self.max_length - room))
        lead = min(found.num_lead, len(found.ids) - excess)
        return found.ids[:lead] + found.ids[lead + excess :]

    def template_for(self, row: Row) -> Template:
        """Return the chat template.

        Raises:
            DataError: The model has none.
        """
        if self.template is None:
            raise DataError(
                f"{row.what} holds messages, but the tokenizer in `{self.folder}` has no chat template",
                hint="rows of `text` need none",
            )
        return self.template

    def _chat(self, text: str, begins: Sequence[int]) -> Tokens:
        """Return the tokens of a rendered chat as `apply_chat_template` makes them.

        A tokenizer's template brings its own special tokens; to a processor's they are added, unless it brings the
        first.
        """
        special = self.template is not None and hasattr(self.template.renderer, "tokenizer")
        found = tokenize(self.tokenizer, text, begins, special=special)
        is_led = found.ids[:1] == [self.tokenizer.bos_token_id]
        return Tokens(ids=found.ids, answers=found.answers, num_lead=int(is_led))

    def _fitted(self, tokens: Tokens, what: str) -> Tokens:
        return tokens.at(self.fit.places(tokens, what))

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
        if is_encoder_decoder(self.config) and completion is None:
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
        # InstructBLIP and its kin have the argument for language models of both sorts.
        only_decodes = getattr(self.config, "use_decoder_only_language_model", False)
        if "decoder_input_ids" not in self.arguments or only_decodes:
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


def selected(inputs: Mapping[str, Tensor], places: Sequence[int], length: int) -> Inputs:
    """Return inputs with some of their tokens only.

    Args:
        length: How many tokens there are; the axis of that size is theirs, but for pictures and sound.
    """
    if len(places) == length:
        return dict(inputs)
    kept = torch.tensor(places, dtype=torch.int64)
    found: Inputs = {}
    for key, value in inputs.items():
        axis = next((k for k in range(1, value.ndim) if value.shape[k] == length), None)
        found[key] = value.index_select(axis, kept) if axis and is_of_tokens(key, value, length) else value
    return found


def is_of_tokens(key: str, value: Tensor, length: int) -> bool:
    """Return whether an input has one number, or a few, for each of `length` tokens; pictures and sound have not."""
    is_media = key.startswith(("pixel", "image", "video", "input_features", "input_values", "feature", "audio"))
    return not is_media and length in value.shape[1:]
