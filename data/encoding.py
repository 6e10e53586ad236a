"""Rows to examples of one model: through its tokenizer, chat template, image processor or feature extractor.

The one encoder: calibrating, training, learning and scoring see the same tokens of a row, with the same of them to be
predicted (`tokens.py` has the rule). What a row may hold: `input_ids` and the model's other inputs, ready-made; `text`,
for a model that compares two with `text_pair`; `messages`, through the chat template; `prompt` and `completion`; with
`image`, `video` or `audio` (or several: `images` …) to any of them, or alone. Of `prompt` and `completion` the
completion is to be predicted, of `messages` the last, if it is the assistant's, of ready-made tokens those that
`labels` name, of anything else all of it, but never an image. An encoder–decoder is given the prompt (or the first
half of the text) in its encoder and the completion (the second half) in its decoder.
"""

from __future__ import annotations

import copy
import inspect
import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..fusion.checkpoint.pretrained import is_encoder_decoder
from ..fusion.errors import DataError, Way
from ..fusion.rows import RowOptions
from .example import Example
from .fit import Fit, TooLongError
from .processed import Processed, without_media
from .ready_made import MAIN, ready_made
from .row import Row
from .texts import Inputs, Texts, num_positions, selected
from .tokens import Tokens

logger = logging.getLogger(__name__)

UNLIMITED = 1 << 20

READ = (
    *("text", "text_pair", "messages", "prompt", "completion", "tools", "chat_template_kwargs"),
    *("image", "images", "video", "videos", "audio", "audios"),
    *("answer", "answers", "choices", "references", "label", "domain"),  # scorers and buffers read them
)
# What data sets note beside a sample, and no model is told.
NOTES = frozenset(
    [
        *("id", "idx", "index", "uid", "uuid", "qid", "question_id", "image_id", "sample_id", "__index_level_0__"),
        *("source", "dataset", "subset", "split", "category", "categories", "task", "topic", "subject", "tags"),
        *("difficulty", "language", "lang", "url", "title", "license", "meta", "metadata", "timestamp", "date"),
        *("author", "score", "origin"),
    ]
)


class Encoder:
    """Turns rows into examples for one model.

    Attributes:
        folder: Of tokenizer and processor.
        model: For its config and the arguments of its forward.
        fit: The longest length, and how many samples did not fit it.
        for_scores: All that is to be predicted is wanted, as lm-evaluation-harness takes it: a text that is too long
            becomes several examples.
        ends_texts: For calibrating and training: text that the tokenizer does not end gets its end token.
        in_suite: Whether options are keys of a suite's task, which messages then name.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        *,
        max_length: int,
        options: RowOptions | None = None,
        for_scores: bool = False,
        ends_texts: bool = False,
        in_suite: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.folder = folder
        self.model = model
        self.config = model.config
        self.options = options or RowOptions()
        self.arguments, self.takes_anything = _arguments_of(model)
        self.texts = Texts(
            folder,
            model,
            self.arguments,
            max_length=max_length,
            options=self.options,
            for_scores=for_scores,
            ends_texts=ends_texts,
            trust_remote_code=trust_remote_code,
        )
        self.processed = Processed(self.texts, model, self.arguments)
        self.fit = self.texts.fit
        self.in_suite = in_suite
        self._ignored: set[str] = set()

    @property
    def max_length(self) -> int:
        """The longest length."""
        return self.fit.length

    def unlimited(self) -> Encoder:
        """Return the same for samples as long as the model has positions for, or as there can be."""
        found = copy.copy(self)
        found.texts = copy.copy(self.texts)
        found.texts.fit = Fit(length=min(UNLIMITED, num_positions(self.model) or UNLIMITED))
        found.processed = Processed(found.texts, self.model, self.arguments)
        found.fit = found.texts.fit
        return found

    def examples(self, row: Row) -> list[Example]:
        """Return the examples of a row: one, or of running text as many as it fills; none of a row without a token.

        Raises:
            DataError: The row has nothing that the model takes.
        """
        self._check_fields(row)
        try:
            return [self._example(inputs, tokens, row.what) for inputs, tokens in self._encode(row)]
        except TooLongError:
            return []

    def labelled(self, row: Row) -> list[Example]:
        """Return the examples of a row that is to be learned from or scored.

        Raises:
            DataError: The row has nothing that the model takes, or could have nothing that is to be predicted.
        """
        found = self.examples(row)
        chat = row.messages
        if chat is not None and chat[0][chat[1]].get("role") != "assistant":
            raise DataError(f"the last message of {row.what} is not the assistant's, so it has nothing to learn")
        return found

    def only(self, row: Row) -> Example:
        """Return the one example of a row that has a class: the beginning of a long text, which is cut.

        Raises:
            DataError: The row has nothing that the model takes.
        """
        found = self.examples(row)
        if not found:
            raise DataError(f"{row.what} has no token")
        return found[0]

    def prompt(self, row: Row, *, room: int) -> Example:
        """Return a prompt as an example without an answer, for which `room` tokens are left where they can be.

        It is what the same prompt with an answer begins with.
        """
        self._check_fields(row)
        row = self._templated(row)
        if row.media:
            inputs = self.processed.prompt(row)
        else:
            ids = torch.tensor([self.texts.prompt(row, room)], dtype=torch.int64)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self._example(inputs, Tokens(ids=[], answers=[]), row.what)

    def document_ids(self, row: Row) -> array[int]:
        """Return the tokens of running text, of which samples are pieces."""
        self._check_fields(row)
        return self.texts.document_ids(row)

    def piece(self, ids: Sequence[int], what: str) -> list[Example]:
        """Return the example of a piece of running text; none of no token."""
        made = self.texts.inputs_of(Tokens.all_predicted(ids), None)
        return [self._example(inputs, tokens, what) for inputs, tokens in made]

    def _example(self, inputs: Inputs, tokens: Tokens, what: str) -> Example:
        inputs = {key: value for key, value in inputs.items() if self.takes_anything or key in self.arguments}
        self._check_ids(inputs, what)
        ids = torch.tensor([tokens.ids], dtype=torch.int64)
        answers = without_media(torch.tensor([tokens.answers], dtype=torch.int64), ids, self.config)
        return Example(inputs=inputs, tokens=ids, answers=answers, what=what)

    def _encode(self, row: Row) -> Iterator[tuple[Inputs, Tokens]]:
        if row.holds_any(MAIN):
            yield from self._ready_made(row)
            return
        row = self._templated(row)
        if row.media:
            yield self.processed.encode(row)
        elif "text_pair" in row:
            yield self._pair(row)
        else:
            for tokens, completion in self.texts.read(row):
                yield from self.texts.inputs_of(tokens, completion)

    def _templated(self, row: Row) -> Row:
        """Return a row as a model without a chat template can read it, where it has none."""
        plain = row.untemplated()
        return row if plain is row or self.texts.template is not None else plain

    def _ready_made(self, row: Row) -> Iterator[tuple[Inputs, Tokens]]:
        is_double = is_encoder_decoder(self.config)
        inputs, tokens, completion = ready_made(
            row, self.arguments, type(self.model).__name__, is_encoder_decoder=is_double
        )
        if not tokens.ids and set(inputs) <= {"input_ids", "attention_mask"}:
            return
        places = self.fit.places(tokens, row.what)
        inputs, tokens = selected(inputs, places, len(tokens.ids)), tokens.at(places)
        if set(inputs) <= {"input_ids", "attention_mask"} and completion is None:
            yield from self.texts.inputs_of(tokens, None)
            return
        yield inputs, self.texts.with_decoder(inputs, completion) or tokens

    def _pair(self, row: Row) -> tuple[Inputs, Tokens]:
        """Return two texts as a model that compares them reads them, often with a type to each token."""
        texts = row.text("text"), row.text("text_pair")
        encoded = self.texts.tokenizer(*texts, return_tensors="pt")
        if self.fit.exceeds(encoded["input_ids"].shape[1], row.what):
            encoded = self.texts.tokenizer(*texts, truncation=True, max_length=self.max_length, return_tensors="pt")
        inputs = {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
        return inputs, Tokens.all_predicted(encoded["input_ids"][0].tolist())

    def _check_fields(self, row: Row) -> None:
        """Raise DataError for a field of a row that nothing reads; say so once where it is to be ignored."""
        known = {*READ, *NOTES, *self._ignored}
        if row.holds_any(MAIN):
            known |= {*self.arguments, "labels"}
        unknown = [key for key in row if key not in known]
        if not unknown:
            return
        if self.options.unknown_fields == "ignore":
            logger.warning(
                "`%s` of %s is a field that sculpt does not know, there and in other rows",
                "`, `".join(unknown),
                row.what,
            )
            self._ignored.update(unknown)
            return
        message = f"{row.what} holds `{unknown[0]}`, which nothing reads"
        if self.in_suite:
            raise DataError(
                message,
                hint=f"in the task, `fields: {{prompt: {unknown[0]}}}` says which field of ours it is, "
                "`unknown_fields: ignore` leaves such fields out",
            )
        raise DataError(
            message,
            ways=[
                Way(option="fields", value=f"text={unknown[0]}", effect="says which field of ours it is"),
                Way(option="unknown_fields", value="ignore", effect="leaves such fields out"),
            ],
        )

    def _check_ids(self, inputs: Mapping[str, Tensor], what: str) -> None:
        size = num_embeddings(self.model)
        for key in ("input_ids", "decoder_input_ids"):
            ids = inputs.get(key)
            if ids is None or size is None:
                continue
            wrong = ids[(ids >= size) | (ids < 0)]
            if wrong.numel():
                raise DataError(f"{what} holds the token {int(wrong[0])}, but the model knows {size}")


def num_embeddings(model: Any) -> int | None:
    """Return how many tokens a model has embeddings of: at least its vocabulary, and often tokens for images too."""
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a model of pictures has none
        return size
    if not isinstance(table, nn.Embedding) or not isinstance(size, int):
        return size if isinstance(size, int) else None
    more = getattr(table, "num_additional_embeddings", 0)  # Idefics' keeps those of new tokens apart
    return max(size, table.weight.shape[0] + more)


def _arguments_of(model: Any) -> tuple[frozenset[str], bool]:
    """Return what a model's forward takes, and whether it hands more on than it names."""
    parameters = inspect.signature(model.forward).parameters
    takes_anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    found = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    inner = getattr(model, "base_model", None)
    if takes_anything and inner is not None and inner is not model:
        found |= {name for name in inspect.signature(inner.forward).parameters if name != "kwargs"}
    return frozenset(found), takes_anything
