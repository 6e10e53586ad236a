"""Rows to the inputs of a model: through its tokenizer, chat template, image processor or feature extractor.

What a row may hold: `input_ids`; `text`; `messages`, through the chat template; `prompt` and `completion`; with
`image` or `images` to any of them, or alone; `audio`. An encoder–decoder is given the prompt (or the first half of the
text) in its encoder and the completion (the second half) in its decoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fusion.errors import DataError
from .batching import PADDED, Sample
from .media import load_audio, load_image
from .rows import Rows
from .texts import Texts

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


class Encoder:
    """Turns rows into samples for one model.

    Attributes:
        folder: Of tokenizer and processor.
        model: For its config and the arguments of its forward.
        max_length: Longer samples are cut.
    """

    def __init__(self, folder: Path, model: Any, *, max_length: int, trust_remote_code: bool = False) -> None:
        self.folder = folder
        self.model = model
        self.config = model.config
        parameters = inspect.signature(model.forward).parameters
        self.arguments = frozenset(parameters)
        self.takes_anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self.texts = Texts(folder, model, self.arguments, max_length=max_length, trust_remote_code=trust_remote_code)
        self.max_length = self.texts.max_length

    @cached_property
    def processor(self) -> Any:
        """The processor in the model's folder, which handles images with text."""
        from transformers import AutoProcessor

        return self.texts.from_folder(AutoProcessor, "processor")

    def samples(self, rows: Rows, number: int) -> Iterator[Sample]:
        """Yield the samples of a row: one, or of running text as many as it fills.

        Raises:
            DataError: The row has nothing that the model takes.
        """
        row = {key: value for key, value in rows.read(number).items() if value is not None}
        what = f"row {number + 1} of `{rows.name}`"
        for inputs in self._encode(row, rows, what):
            inputs = {key: value for key, value in inputs.items() if self.takes_anything or key in self.arguments}
            ids = [value for key, value in inputs.items() if key in ("input_ids", "decoder_input_ids")]
            self._check_ids(inputs, what)
            yield Sample(inputs=inputs, num_tokens=sum(value.numel() for value in ids), what=what)

    def _encode(self, row: Mapping[str, Any], rows: Rows, what: str) -> Iterator[dict[str, Tensor]]:
        ready = {key: row[key] for key in READY_MADE if key in row}
        if ready:
            yield self._ready_made(ready, what)
            return
        images = row.get("images", row.get("image"))
        if images is not None:
            images = images if isinstance(images, list) else [images]
            yield self._with_images(row, [load_image(image, rows.folder, what) for image in images], what)
        elif "audio" in row:
            yield self._with_audio(row, rows, what)
        elif "messages" in row and _has_images(row["messages"]):
            messages, images = _take_images(row["messages"], rows.folder, what)
            yield self._chat_with_images(messages, images, what)
        else:
            for ids in self.texts.token_ids(row, rows.documents, what):
                yield from self.texts.inputs_of(*ids)

    def _ready_made(self, given: Mapping[str, Any], what: str) -> dict[str, Tensor]:
        inputs = {}
        for key, value in given.items():
            try:
                inputs[key] = torch.tensor(np.asarray(value), dtype=READY_MADE[key])
            except (TypeError, ValueError) as error:
                raise DataError(f"`{key}` of {what} is no array of numbers") from error
            # Patches come as one row each, whatever image they are of; all else lacks the batch axis.
            if not (key == "image_grid_thw" or (key == "pixel_values" and inputs[key].ndim == 2)):
                inputs[key] = inputs[key].unsqueeze(0)
            if key in PADDED:
                inputs[key] = inputs[key][:, : self.max_length]
        if set(inputs) == {"input_ids"}:
            return next(self.texts.inputs_of(inputs["input_ids"][0].tolist(), None))
        for key in ("input_ids", "qformer_input_ids"):
            if key in inputs:
                inputs[key.replace("input_ids", "attention_mask")] = torch.ones_like(inputs[key])
        return self.texts.with_decoder(inputs, None)

    def _with_audio(self, row: Mapping[str, Any], rows: Rows, what: str) -> dict[str, Tensor]:
        from transformers import AutoFeatureExtractor

        extractor = self.texts.from_folder(AutoFeatureExtractor, "feature extractor")
        sound = load_audio(row["audio"], extractor.sampling_rate, rows.folder, what)
        encoded = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        inputs = {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
        ids = self.texts.cut(row["text"]) if isinstance(row.get("text"), str) else None
        return self.texts.with_decoder(inputs, ids)

    def _with_images(self, row: Mapping[str, Any], images: list[Any], what: str) -> dict[str, Tensor]:
        if "messages" in row:
            return self._chat_with_images(row["messages"], images, what)
        prompt, completion = row.get("prompt", row.get("text")), row.get("completion", "")
        if prompt is None:
            return self._images_alone(images, what)
        if getattr(self.processor, "chat_template", None):
            user = {"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": prompt}]}
            answer = {"role": "assistant", "content": [{"type": "text", "text": completion}]}
            return self._chat_with_images([user, answer] if completion else [user], images, what)
        token = getattr(self.processor, "image_token", None)
        text = prompt + completion
        if isinstance(token, str) and token not in text and not hasattr(self.processor, "qformer_tokenizer"):
            text = token * len(images) + "\n" + text
        return self._processed(text, images, what)

    def _chat_with_images(self, messages: Any, images: list[Any], what: str) -> dict[str, Tensor]:
        if not getattr(self.processor, "chat_template", None):
            raise DataError(f"{what} holds `messages`, but the processor in `{self.folder}` has no chat template")
        try:
            text = self.processor.apply_chat_template(messages, tokenize=False)
        except Exception as error:
            raise DataError(f"the chat template refuses {what}: {error}") from error
        return self._processed(text, images, what)

    def _images_alone(self, images: list[Any], what: str) -> dict[str, Tensor]:
        from transformers import AutoImageProcessor

        if self.model.main_input_name != "pixel_values" and "pixel_values" not in self.arguments:
            raise DataError(f"{what} holds an image, but `{type(self.model).__name__}` takes none")
        processor = self.texts.from_folder(AutoImageProcessor, "image processor")
        encoded = processor(images=images, return_tensors="pt")
        return {key: value for key, value in encoded.items() if isinstance(value, Tensor)}

    def _processed(self, text: str, images: list[Any], what: str) -> dict[str, Tensor]:
        try:
            encoded = self.processor(images=images, text=text, return_tensors="pt")
        except Exception as error:
            raise DataError(f"the processor refuses {what}: {error}") from error
        inputs = {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
        ids = inputs.get("input_ids")
        if ids is not None and ids.shape[1] > self.max_length:
            token = getattr(self.config, "image_token_id", getattr(self.config, "image_token_index", None))
            if token is not None and (ids[:, self.max_length :] == token).any():
                raise DataError(
                    f"{what} has {ids.shape[1]} tokens, and cutting it to {self.max_length} would cut an image",
                    hint="raise `--max-length`",
                )
            length = ids.shape[1]
            inputs = {
                key: value[:, : self.max_length] if value.ndim == 2 and value.shape[1] == length else value
                for key, value in inputs.items()
            }
        return self.texts.with_decoder(inputs, None)

    def _check_ids(self, inputs: Mapping[str, Tensor], what: str) -> None:
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        for key in ("input_ids", "decoder_input_ids"):
            ids = inputs.get(key)
            if ids is None or not ids.numel() or not isinstance(size, int):
                continue
            if int(ids.max()) >= size or int(ids.min()) < 0:
                raise DataError(f"{what} holds the token {int(ids.max())}, but the model knows {size}")


def _has_images(messages: Any) -> bool:
    return any(
        isinstance(part, Mapping) and part.get("type") == "image"
        for message in messages
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _take_images(messages: Any, folder: Path, what: str) -> tuple[list[Any], list[Any]]:
    """Return messages with bare image parts, and the images that the parts held."""
    images, found = [], []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for part in content:
                if isinstance(part, Mapping) and part.get("type") == "image":
                    source = next((part[key] for key in ("image", "path", "url", "bytes") if part.get(key)), None)
                    images.append(load_image(source, folder, what))
                    part = {"type": "image"}
                parts.append(part)
            message = {**message, "content": parts}
        found.append(message)
    return found, images
