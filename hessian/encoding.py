"""Rows to the inputs of a model: through its tokenizer, chat template, image processor or feature extractor.

What a row may hold: `input_ids`; `text`; `messages`, through the chat template; `prompt` and `completion`; with
`image` or `images` to any of them, or alone; `audio`. An encoder–decoder is given the prompt (or the first half of the
text) in its encoder and the completion (the second half) in its decoder.
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
from .batching import PADDED, Sample
from .media import load_audio, load_image
from .rows import Rows

KINDS = "`text`, `messages`, `prompt` and `completion`, `input_ids`, `image` or `audio`"
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
        self.trust_remote_code = trust_remote_code
        self.arguments = set(inspect.signature(model.forward).parameters)
        self.takes_anything = any(
            parameter.kind is parameter.VAR_KEYWORD
            for parameter in inspect.signature(model.forward).parameters.values()
        )
        self.max_length = min(max_length, *(limit for limit in (self._positions(),) if limit), max_length)

    def _positions(self) -> int | None:
        """Return the longest input that the model has positions for, where it says."""
        text = self.config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None)
        if not isinstance(limit, int) or limit <= 0:
            return None
        # RoBERTa counts positions from after the padding index.
        offset = (getattr(text, "pad_token_id", None) or 0) + 1 if _counts_from_padding(self.model) else 0
        return limit - offset

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's folder."""
        from transformers import AutoTokenizer

        return self._from_folder(AutoTokenizer, "tokenizer")

    @cached_property
    def processor(self) -> Any:
        """The processor in the model's folder, which handles images with text."""
        from transformers import AutoProcessor

        return self._from_folder(AutoProcessor, "processor")

    def _from_folder(self, auto: Any, what: str) -> Any:
        try:
            return auto.from_pretrained(self.folder, local_files_only=True, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # transformers raises anything on missing or damaged files
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(
                f"`{self.folder}` has no {what} that transformers can load: {lines[0].rstrip('.')}",
                hint="rows of `input_ids` need none" if what == "tokenizer" else None,
            ) from error

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
            for ids in self._token_ids(row, rows.documents, what):
                yield from self._text_inputs(*ids)

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
            return next(self._text_inputs(inputs["input_ids"][0].tolist(), None))
        for key in ("input_ids", "qformer_input_ids"):
            if key in inputs:
                inputs[key.replace("input_ids", "attention_mask")] = torch.ones_like(inputs[key])
        return self._with_decoder(inputs, None)

    def _token_ids(
        self, row: Mapping[str, Any], documents: bool, what: str
    ) -> Iterator[tuple[list[int], list[int] | None]]:
        """Yield (ids, None), or for an encoder–decoder (ids of the prompt, ids of the completion)."""
        if "messages" in row:
            yield self._chat(row["messages"], what), None
        elif "prompt" in row and "completion" in row:
            yield from self._prompted(row["prompt"], row["completion"], what)
        elif isinstance(row.get("text"), str):
            ids = self.tokenizer(row["text"], truncation=not documents, max_length=self.max_length)["input_ids"]
            step = self.max_length if documents else max(1, len(ids))
            for start in range(0, len(ids), step):
                yield ids[start : start + step], None
        else:
            keys = ", ".join(f"`{key}`" for key in row) or "nothing"
            raise DataError(f"{what} holds {keys}; expected {KINDS}")

    def _prompted(self, prompt: Any, completion: Any, what: str) -> Iterator[tuple[list[int], list[int] | None]]:
        if isinstance(prompt, list) and isinstance(completion, list):
            yield self._chat([*prompt, *completion], what), None
        elif not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError(f"`prompt` and `completion` of {what} must both be text, or both lists of messages")
        elif self.config.is_encoder_decoder:
            yield self._cut(prompt), self._cut(completion)
        else:
            yield self._cut(prompt + completion), None

    def _cut(self, text: str) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]

    def _chat(self, messages: Any, what: str) -> list[int]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                f"{what} holds `messages`, but the tokenizer in `{self.folder}` has no chat template",
                hint="rows of `text` need none",
            )
        try:
            encoded = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
        except Exception as error:  # templates raise what they like
            raise DataError(f"the chat template refuses {what}: {error}") from error
        return list(encoded["input_ids"])[: self.max_length]

    def _text_inputs(self, ids: Sequence[int], decoder_ids: Sequence[int] | None) -> Iterator[dict[str, Tensor]]:
        ids = list(ids)[: self.max_length]
        if self.config.is_encoder_decoder and decoder_ids is None:
            half = -(-len(ids) // 2)
            ids, decoder_ids = ids[:half], ids[half:]
        if not ids:
            return
        tensor = torch.tensor([ids], dtype=torch.int64)
        inputs = {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}
        yield self._with_decoder(inputs, decoder_ids)

    def _with_decoder(self, inputs: dict[str, Tensor], ids: Sequence[int] | None) -> dict[str, Tensor]:
        """Return the inputs with the decoder's: its start token, then the completion but for its end."""
        takes = "decoder_input_ids" in self.arguments
        if takes and "decoder_input_ids" not in inputs:
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
            ids = list(ids or ())
            if ids and ids[-1] == getattr(config, "eos_token_id", None):
                ids.pop()
            shifted = ids if ids[:1] == [first] else [first, *ids]
            inputs["decoder_input_ids"] = torch.tensor([shifted[: self.max_length]], dtype=torch.int64)
        return inputs

    def _with_audio(self, row: Mapping[str, Any], rows: Rows, what: str) -> dict[str, Tensor]:
        from transformers import AutoFeatureExtractor

        extractor = self._from_folder(AutoFeatureExtractor, "feature extractor")
        sound = load_audio(row["audio"], extractor.sampling_rate, rows.folder, what)
        encoded = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        inputs = {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
        ids = self._cut(row["text"]) if isinstance(row.get("text"), str) else None
        return self._with_decoder(inputs, ids)

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
        processor = self._from_folder(AutoImageProcessor, "image processor")
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
        return self._with_decoder(inputs, None)

    def _check_ids(self, inputs: Mapping[str, Tensor], what: str) -> None:
        size = getattr(self.config.get_text_config(), "vocab_size", None)
        for key in ("input_ids", "decoder_input_ids"):
            ids = inputs.get(key)
            if ids is None or not ids.numel() or not isinstance(size, int):
                continue
            if int(ids.max()) >= size or int(ids.min()) < 0:
                raise DataError(f"{what} holds the token {int(ids.max())}, but the model knows {size}")


def _counts_from_padding(model: Any) -> bool:
    return any(
        name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    )


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
