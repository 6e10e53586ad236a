"""Rows to examples of one model: through its tokenizer, chat template, image processor or feature extractor.

The one encoder: calibrating, training, learning and scoring see the same tokens of a row, with the same of them to be
predicted (`tokens.py` has the rule). What a row may hold: `input_ids`; `text`, for a model that compares two with
`text_pair`; `messages`, through the chat template; `prompt` and `completion`; with `image` or `images` to any of them,
or alone; `audio`. Of `prompt` and `completion` the completion is to be predicted, of `messages` the last, if it is the
assistant's, of anything else all of it, but never an image. An encoder–decoder is given the prompt (or the first half
of the text) in its encoder and the completion (the second half) in its decoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fusion.errors import DataError
from .chats import load_images, render, render_marked, without_sources
from .example import IGNORED, PADDED, Example
from .media import load_audio
from .row import Row
from .texts import Inputs, Texts
from .tokens import Tokens, tokenize

# Inputs that a row may give ready-made, one sample without a batch axis.
READY_MADE = {
    "input_ids": torch.int64,
    "token_type_ids": torch.int64,
    "mm_token_type_ids": torch.int64,
    "decoder_input_ids": torch.int64,
    "input_features": torch.float32,
    "input_values": torch.float32,
    "pixel_values": torch.float32,
    "qformer_input_ids": torch.int64,
    "image_grid_thw": torch.int64,
}
IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id")  # as configs name them


class Encoder:
    """Turns rows into examples for one model.

    Attributes:
        folder: Of tokenizer and processor.
        model: For its config and the arguments of its forward.
        max_length: Longer samples lose their end.
        keeps_answers: For scores, which want all that is to be predicted: of what is too long the prompt loses its
            beginning, and a text becomes several examples.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        *,
        max_length: int,
        keeps_answers: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.folder = folder
        self.model = model
        self.config = model.config
        parameters = inspect.signature(model.forward).parameters
        self.arguments = frozenset(parameters)
        self.takes_anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self.texts = Texts(
            folder,
            model,
            self.arguments,
            max_length=max_length,
            keeps_answers=keeps_answers,
            trust_remote_code=trust_remote_code,
        )
        self.max_length = self.texts.max_length

    @cached_property
    def processor(self) -> Any:
        """The processor in the model's folder, which handles images with text."""
        from transformers import AutoProcessor

        found = self.texts.from_folder(AutoProcessor, "processor")
        if not hasattr(found, "image_processor"):  # a tokenizer, where there is nothing else
            raise DataError(f"`{self.folder}` has no processor of images, and its rows hold some")
        return found

    def examples(self, row: Row) -> list[Example]:
        """Return the examples of a row: one, or of running text as many as it fills; none of a row without a token.

        Raises:
            DataError: The row has nothing that the model takes.
        """
        return [self._example(inputs, tokens, row.what) for inputs, tokens in self._encode(row)]

    def labelled(self, row: Row) -> list[Example]:
        """Return the examples of a row that is to be learned from or scored.

        Raises:
            DataError: The row has nothing that the model takes, or could have nothing that is to be predicted.
        """
        found = self.examples(row)
        chat = row.messages
        if chat is not None and chat[0][chat[1]].get("role") != "assistant":
            raise DataError(
                f"the last message of {row.what} is not the assistant's, so there is nothing to learn from it"
            )
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
        images = row.images
        if images is not None:
            inputs = self._prompt_with_images(row, load_images(images, row.folder, row.what))
        else:
            ids = torch.tensor([self.texts.prompt(row, room)], dtype=torch.int64)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self._example(inputs, Tokens(ids=[], answers=[]), row.what)

    def _example(self, inputs: Inputs, tokens: Tokens, what: str) -> Example:
        inputs = {key: value for key, value in inputs.items() if self.takes_anything or key in self.arguments}
        self._check_ids(inputs, what)
        ids = torch.tensor([tokens.ids], dtype=torch.int64)
        answers = torch.tensor([tokens.answers], dtype=torch.int64)
        for token in filter(None, (getattr(self.config, name, None) for name in IMAGE_TOKENS)):
            answers[ids == token] = IGNORED
        return Example(inputs=inputs, tokens=ids, answers=answers, what=what)

    def _encode(self, row: Row) -> Iterator[tuple[Inputs, Tokens]]:
        images = row.images
        if row.holds_any(READY_MADE):
            yield from self._ready_made(row)
        elif images is not None:
            yield self._with_images(row, load_images(images, row.folder, row.what))
        elif "audio" in row:
            yield self._with_audio(row)
        elif "text_pair" in row:
            yield self._pair(row)
        else:
            for tokens, completion in self.texts.read(row):
                yield from self.texts.inputs_of(tokens, completion)

    def _ready_made(self, row: Row) -> Iterator[tuple[Inputs, Tokens]]:
        inputs: Inputs = {}
        for key, kind in READY_MADE.items():
            if key not in row:
                continue
            inputs[key] = _array(row, key, kind)
            # Patches come as one row each, whatever image they are of; all else lacks the batch axis.
            if not (key == "image_grid_thw" or (key == "pixel_values" and inputs[key].ndim == 2)):
                inputs[key] = inputs[key].unsqueeze(0)
            if key in PADDED:
                inputs[key] = inputs[key][:, : self.max_length]
        tokens = Tokens.all_predicted(inputs["input_ids"][0].tolist() if "input_ids" in inputs else [])
        if set(inputs) == {"input_ids"}:
            yield from self.texts.inputs_of(tokens, None)
            return
        for key in ("input_ids", "qformer_input_ids"):
            if key in inputs:
                inputs[key.replace("input_ids", "attention_mask")] = torch.ones_like(inputs[key])
        yield inputs, self.texts.with_decoder(inputs, None) or tokens

    def _pair(self, row: Row) -> tuple[Inputs, Tokens]:
        """Return two texts as a model that compares them reads them, often with a type to each token."""
        texts = row.text("text"), row.text("text_pair")
        encoded = self.texts.tokenizer(*texts, truncation=True, max_length=self.max_length, return_tensors="pt")
        return _tensors_in(encoded), Tokens.all_predicted(encoded["input_ids"][0].tolist())

    def _with_audio(self, row: Row) -> tuple[Inputs, Tokens]:
        from transformers import AutoFeatureExtractor

        extractor = self.texts.from_folder(AutoFeatureExtractor, "feature extractor")
        sound = load_audio(row.get("audio"), extractor.sampling_rate, row.folder, row.what)
        encoded = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        inputs = {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
        said = self.texts.cut(row.text("text")) if "text" in row else None
        return inputs, self.texts.with_decoder(inputs, said) or Tokens(ids=[], answers=[])

    def _with_images(self, row: Row, images: list[Any]) -> tuple[Inputs, Tokens]:
        text, begins = self._text_with_images(row, len(images))
        if text is None:
            return self._images_alone(images, row.what), Tokens(ids=[], answers=[])
        inputs = self._processed(text, images, row.what)
        ids = inputs["input_ids"][0].tolist() if "input_ids" in inputs else []
        tokens = Tokens(ids=ids, answers=self._answers_among(ids, text, begins))
        inputs = self._cut(inputs, row.what)
        tokens = tokens.cut(0, self.max_length)
        return inputs, self.texts.with_decoder(inputs, None) or tokens

    def _text_with_images(self, row: Row, count: int) -> tuple[str | None, tuple[int, ...]]:
        """Return what the processor reads with the images, None where that is nothing, and where the answer begins."""
        chat = row.messages
        if chat is None:
            if not row.holds_any(("prompt", "text")):
                return None, ()
            prompt = row.text("prompt" if "prompt" in row else "text")
            completion = row.text("completion") if "completion" in row else ""
            if not self._has_template:
                text = self._with_places(prompt + completion, count)
                return text, (len(text) - len(completion) if "prompt" in row and "completion" in row else 0,)
            user = _user(prompt, count)
            if "completion" not in row:
                return render(self.processor, [user], row.what), (0,)
            chat = [user, {"role": "assistant", "content": [{"type": "text", "text": completion}]}], 1
        self._require_template(row)
        return render_marked(self.processor, without_sources(chat[0]), chat[1], row.what)

    def _prompt_with_images(self, row: Row, images: list[Any]) -> Inputs:
        """Return the inputs of images with a prompt, or alone, for an answer to be written."""
        prompt = row.get("prompt") if "prompt" in row else ""
        if isinstance(prompt, list) or self._has_template:
            self._require_template(row)
            messages = without_sources(row.chat("prompt")) if isinstance(prompt, list) else [_user(prompt, len(images))]
            text = render(self.processor, messages, row.what, add_generation_prompt=True)
        else:
            text = self._with_places(prompt, len(images)) if prompt or self._place else None
        return self._processed(text, images, row.what)

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    @property
    def _place(self) -> str | None:
        """What stands for an image in a text without a template; None where the processor puts it there itself."""
        token = getattr(self.processor, "image_token", None)
        return token if isinstance(token, str) and not hasattr(self.processor, "qformer_tokenizer") else None

    def _with_places(self, text: str, count: int) -> str:
        return text if self._place is None or self._place in text else self._place * count + "\n" + text

    def _require_template(self, row: Row) -> None:
        if not self._has_template:
            raise DataError(f"{row.what} holds `messages`, but the processor in `{self.folder}` has no chat template")

    def _answers_among(self, ids: list[int], text: str, begins: Sequence[int]) -> list[int]:
        """Return which of the tokens that a processor made of a text are the answer's.

        Processors say not where tokens lie, and put many tokens in the place of an image; so the answer's tokens, as
        the tokenizer alone makes them, are sought from the end. Where they are not found nothing is marked.
        """
        if not begins or begins[0] == 0:
            return [0 if begins else IGNORED] * len(ids)
        plain = tokenize(self.processor.tokenizer, text, begins, special=False)
        answer = plain.ids[len(plain.prompt) :]
        for start in range(len(ids) - len(answer), -1, -1) if answer else ():
            if ids[start : start + len(answer)] == answer:
                return [IGNORED] * start + [0] * (len(ids) - start)
        return [IGNORED] * len(ids)

    def _images_alone(self, images: list[Any], what: str) -> Inputs:
        from transformers import AutoImageProcessor

        if self.model.main_input_name != "pixel_values" and "pixel_values" not in self.arguments:
            raise DataError(f"{what} holds an image, but `{type(self.model).__name__}` takes none")
        processor = self.texts.from_folder(AutoImageProcessor, "image processor")
        return _tensors_in(processor(images=images, return_tensors="pt"))

    def _processed(self, text: str | None, images: list[Any], what: str) -> Inputs:
        # As transformers does for chats: a template that brings the first token brings all special tokens.
        first = getattr(getattr(self.processor, "tokenizer", None), "bos_token", None)
        options = {"add_special_tokens": False} if text and first and text.startswith(first) else {}
        try:
            return _tensors_in(self.processor(images=images, text=text, return_tensors="pt", **options))
        except Exception as error:
            raise DataError(f"the processor refuses {what}: {error}") from error

    def _cut(self, inputs: Inputs, what: str) -> Inputs:
        """Return the inputs cut to the longest length, which must not cut an image."""
        ids = inputs.get("input_ids")
        if ids is None or ids.shape[1] <= self.max_length:
            return inputs
        token = getattr(self.config, "image_token_id", getattr(self.config, "image_token_index", None))
        if token is not None and (ids[:, self.max_length :] == token).any():
            raise DataError(
                f"{what} has {ids.shape[1]} tokens, and cutting it to {self.max_length} would cut an image",
                hint="raise `max_length`",
                options=["max_length"],
            )
        length = ids.shape[1]
        return {
            key: value[:, : self.max_length] if value.ndim == 2 and value.shape[1] == length else value
            for key, value in inputs.items()
        }

    def _check_ids(self, inputs: Mapping[str, Tensor], what: str) -> None:
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        for key in ("input_ids", "decoder_input_ids"):
            ids = inputs.get(key)
            if ids is None or not ids.numel() or not isinstance(size, int):
                continue
            if int(ids.max()) >= size or int(ids.min()) < 0:
                raise DataError(f"{what} holds the token {int(ids.max())}, but the model knows {size}")


def _array(row: Row, key: str, kind: torch.dtype) -> Tensor:
    """Return a field that is one sample's input: numbers, whole ones where the input is."""
    try:
        found = np.asarray(row.get(key))
        if found.ndim and found.size and found.dtype.kind in ("iuf" if kind.is_floating_point else "iu"):
            return torch.tensor(found, dtype=kind)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass  # lists of several lengths, text, numbers that no tensor holds
    wanted = "numbers" if kind.is_floating_point else "whole numbers"
    raise DataError(f"`{key}` of {row.what} is no array of {wanted}")


def _user(prompt: str, num_images: int) -> dict[str, Any]:
    """Return the message of a user who shows images and then, if at all, says something."""
    said = [{"type": "text", "text": prompt}] if prompt else []
    return {"role": "user", "content": [{"type": "image"}] * num_images + said}


def _tensors_in(encoded: Any) -> Inputs:
    return {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
