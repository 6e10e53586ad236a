"""Rows with images, video or sound: through the model's own processor, as `apply_chat_template(tokenize=True)` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..fusion.checkpoint.pretrained import is_encoder_decoder
from ..fusion.errors import DataError, first_line
from .chats import Template, with_sources
from .example import IGNORED
from .fit import Fit
from .media import load_audio, load_image, load_video
from .parts import PLACE, with_parts
from .row import Row
from .texts import Inputs, Texts, selected
from .tokens import Tokens, tokenize

IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id")  # as configs name them
# What of a processor's outputs shows that it took what it was given.
TAKEN = {
    "image": ("pixel", "image", "patches"),
    "video": ("video", "pixel"),
    "audio": ("feature", "audio", "input_values"),
}
KIND_NAMES = {"image": "an image", "video": "a video", "audio": "sound"}


class Processed:
    """Turns rows with media into the inputs of one model.

    Attributes:
        texts: Its tokenizer, processor, options and longest length.
        model: For its config and its name.
    """

    def __init__(self, texts: Texts, model: Any, arguments: frozenset[str]) -> None:
        self.texts = texts
        self.model = model
        self.arguments = arguments

    @property
    def fit(self) -> Fit:
        """The longest length."""
        return self.texts.fit

    @property
    def processor(self) -> Any:
        """The processor in the model's folder.

        Raises:
            DataError: There is no more than a tokenizer.
        """
        found = self.texts.processor
        if not any(hasattr(found, part) for part in ("image_processor", "feature_extractor", "audio_processor")):
            raise DataError(f"`{self.texts.folder}` has no processor of images, and its rows hold some")
        return found

    def encode(self, row: Row) -> tuple[Inputs, Tokens]:
        """Return the inputs of a row with media, and its tokens."""
        media = row.media
        self._refuse_blind(media, row.what)
        if set(media) == {"audio"} and not self._takes_chats:
            return self._sound_alone(row, media["audio"])
        chat = row.messages or self._as_chat(row, media)
        if chat is None:
            if not row.holds_any(("prompt", "text")):
                return self._images_alone(self._loaded(row, media)["image"], row.what), Tokens(ids=[], answers=[])
            return self._without_template(row, media)
        template = self._template(row)
        messages = template.spelled(row, chat[0])
        text, begins = template.render_marked(row, messages, chat[1])
        if not row.holds_any(("completion", "messages")):
            begins = (0,)  # of a text beside a picture all is to be predicted
        return self._finished(self._chat(row, template, messages), text, begins, row.what)

    def prompt(self, row: Row) -> Inputs:
        """Return the inputs of media with a prompt, or alone, for an answer to be written."""
        media = row.media
        self._refuse_blind(media, row.what)
        messages = row.prompt_messages
        if messages is None and self._takes_chats:
            messages = [_user(row.text("prompt") if "prompt" in row else "", media, row.what)]
        if messages is not None:
            template = self._template(row)
            return self._chat(row, template, template.spelled(row, messages), add_generation_prompt=True)
        text = row.text("prompt") if "prompt" in row else ""
        count = len(media.get("image", ()))
        return self._called(row, media, self._with_places(text, count) if text or self._place else None, text)

    def _as_chat(self, row: Row, media: Mapping[str, list[Any]]) -> tuple[list[Any], int] | None:
        """Return prompt and completion, or a text, as a chat; None where the processor has no template."""
        if not self._takes_chats or not row.holds_any(("prompt", "text")):
            return None
        user = _user(row.text("prompt" if "prompt" in row else "text"), media, row.what)
        if "completion" not in row:
            return [user], 0
        said = {"role": "assistant", "content": [{"type": "text", "text": row.text("completion")}]}
        return [user, said], 1

    def why_not(self, kind: str) -> str | None:
        """Return why users cannot show the model an image, or let it hear a sound, and ask; None where they can."""
        parts = {"image": ("image_processor",), "audio": ("feature_extractor", "audio_processor")}[kind]
        if not self._takes(kind) or not self.texts.has_processor:
            return f"which takes no {kind}"
        if not any(getattr(self.texts.processor, part, None) is not None for part in parts):
            return f"whose processor takes no {kind}"
        return None if self._takes_chats else "whose processor has no chat template"

    def _takes(self, kind: str) -> bool:
        """Return whether the model's forward has an argument for media of a kind."""
        return self.model.main_input_name == "pixel_values" or any(
            part in argument for part in TAKEN[kind] for argument in self.arguments
        )

    @property
    def _takes_chats(self) -> bool:
        return self.texts.has_processor and bool(getattr(self.processor, "chat_template", None))

    def _template(self, row: Row) -> Template:
        if not self._takes_chats:
            raise DataError(
                f"{row.what} holds messages with media, but the processor in `{self.texts.folder}` has no chat template"
            )
        return self.texts.template_for(row)

    def _refuse_blind(self, media: Mapping[str, Any], what: str) -> None:
        """Raise DataError for an image or a video that a model of text could only read as a word."""
        named = next(iter(media))
        if not self._takes(named):
            raise DataError(f"{what} holds {KIND_NAMES[named]}, but `{type(self.model).__name__}` takes none")

    def _chat(self, row: Row, template: Template, messages: Sequence[Any], **options: Any) -> Inputs:
        loaded = with_sources(messages, lambda kind, source: self._load(kind, source, row))
        try:
            encoded = self.processor.apply_chat_template(
                loaded, tokenize=True, return_dict=True, return_tensors="pt", **template.options(row), **options
            )
        except DataError:
            raise
        except Exception as error:  # processors raise what they like
            raise DataError(f"the processor refuses {row.what}: {first_line(error)}") from error
        return self._taken(_tensors_in(encoded), row.media, row.what)

    def _without_template(self, row: Row, media: Mapping[str, list[Any]]) -> tuple[Inputs, Tokens]:
        """Return prompt and completion, or a text, read as one with the images before it."""
        prompt = row.text("prompt" if "prompt" in row else "text")
        completion = row.text("completion") if "completion" in row else ""
        if completion and is_encoder_decoder(self.model.config):
            text = self._with_places(prompt, len(media.get("image", ())))
            inputs, tokens = self._finished(self._called(row, media, text, prompt), text, (), row.what)
            inputs.pop("decoder_input_ids", None)
            return inputs, self.texts.with_decoder(inputs, self.texts.cut(completion, row.what)) or tokens
        text = self._with_places(prompt + completion, len(media.get("image", ())))
        begins = (len(text) - len(completion) if "prompt" in row and "completion" in row else 0,)
        return self._finished(self._called(row, media, text, prompt), text, begins, row.what)

    def _called(self, row: Row, media: Mapping[str, list[Any]], text: str | None, instruction: str) -> Inputs:
        """Return what the processor makes of a text; a Q-Former reads the instruction alone, never the answer."""
        first = getattr(getattr(self.processor, "tokenizer", None), "bos_token", None)
        options = {"add_special_tokens": False} if text and first and text.startswith(first) else {}
        loaded = self._loaded(row, media)
        try:
            found = _tensors_in(self.processor(images=loaded.get("image"), text=text, return_tensors="pt", **options))
            own = getattr(self.processor, "qformer_tokenizer", None)
            if own is not None and text is not None:
                asked = own(instruction, return_tensors="pt")
                found |= {f"qformer_{key}": asked[key] for key in ("input_ids", "attention_mask")}
        except Exception as error:
            raise DataError(f"the processor refuses {row.what}: {first_line(error)}") from error
        return self._taken(found, media, row.what)

    @property
    def _place(self) -> str | None:
        """What stands for an image in a text without a template; None where the processor puts it there itself."""
        token = getattr(self.processor, "image_token", None)
        return token if isinstance(token, str) and not hasattr(self.processor, "qformer_tokenizer") else None

    def _with_places(self, text: str, count: int) -> str:
        return text if self._place is None or self._place in text else self._place * count + "\n" + text

    def _taken(self, inputs: Inputs, media: Mapping[str, Any], what: str) -> Inputs:
        """Return the inputs; raise DataError where a template or a processor passed media over."""
        for kind in media:
            if not any(part in key for key in inputs for part in TAKEN[kind]):
                raise DataError(
                    f"{what} holds {KIND_NAMES[kind]}, which `{type(self.processor).__name__}` does not take"
                )
        return inputs

    def _finished(self, inputs: Inputs, text: str, begins: Sequence[int], what: str) -> tuple[Inputs, Tokens]:
        """Return inputs and tokens within the longest length, which must not cut an image."""
        ids = inputs["input_ids"][0].tolist() if "input_ids" in inputs else []
        tokenizer = self.processor.tokenizer
        is_led = ids[:1] == [tokenizer.bos_token_id]
        tokens = Tokens(ids=ids, answers=self._answers_among(ids, text, begins), num_lead=int(is_led))
        places = self.fit.places(tokens, what)
        left_out = set(range(len(ids))).difference(places)
        media_tokens = {getattr(self.model.config, name, None) for name in IMAGE_TOKENS} - {None}
        if any(ids[place] in media_tokens for place in left_out):
            raise DataError(
                f"{what} has {len(ids)} tokens, and cutting it to {self.fit.length} would cut an image",
                hint="raise `max_length`, or drop such rows with `too_long`",
                options=["max_length", "too_long"],
            )
        inputs, tokens = selected(inputs, places, len(ids)), tokens.at(places)
        return inputs, self.texts.with_decoder(inputs, None) or tokens

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

    def _load(self, kind: str, source: Any, row: Row) -> Any:
        if source is None:
            raise DataError(f"{row.what} has a message with a place for {KIND_NAMES[kind]}, and names none")
        if kind == "image":
            return load_image(source, row.folder, row.what)
        if kind == "video":
            return load_video(source, row.folder, row.what)
        extractor = getattr(self.processor, "feature_extractor", None) or getattr(
            self.processor, "audio_processor", None
        )
        return load_audio(source, getattr(extractor, "sampling_rate", 16_000), row.folder, row.what)

    def _loaded(self, row: Row, media: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {kind: [self._load(kind, source, row) for source in sources] for kind, sources in media.items()}

    def _images_alone(self, images: list[Any], what: str) -> Inputs:
        from transformers import AutoImageProcessor

        if "input_ids" in self.arguments and self.model.main_input_name != "pixel_values":
            raise DataError(
                f"{what} holds an image alone, and `{type(self.model).__name__}` reads images with text",
                hint="give it `text`, `prompt` or `messages` too",
            )
        processor = self.texts.from_folder(AutoImageProcessor, "image processor")
        return _tensors_in(processor(images=images, return_tensors="pt"))

    def _sound_alone(self, row: Row, sounds: Sequence[Any]) -> tuple[Inputs, Tokens]:
        """Return the inputs of sound for a model that hears it without a chat, and what it is to write."""
        from transformers import AutoFeatureExtractor

        extractor = self.texts.from_folder(AutoFeatureExtractor, "feature extractor")
        sound = load_audio(sounds[0], extractor.sampling_rate, row.folder, row.what)
        inputs = _tensors_in(extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt"))
        said = self.texts.cut(row.text("text"), row.what) if "text" in row else None
        return inputs, self.texts.with_decoder(inputs, said) or Tokens(ids=[], answers=[])


def _user(prompt: str, media: Mapping[str, list[Any]], what: str) -> dict[str, Any]:
    """Return the message of a user who shows media where his words have places for them, or before he says anything."""
    if PLACE.search(prompt):
        return with_parts([{"role": "user", "content": prompt}], media, what)[0]
    shown = [{"type": kind, kind: source} for kind, sources in media.items() for source in sources]
    return {"role": "user", "content": [*shown, *([{"type": "text", "text": prompt}] if prompt else [])]}


def _tensors_in(encoded: Any) -> Inputs:
    return {key: value for key, value in encoded.items() if isinstance(value, Tensor)}


def without_media(answers: torch.Tensor, ids: torch.Tensor, config: Any) -> torch.Tensor:
    """Return answers without the tokens that stand for images, video or sound."""
    for token in filter(None, (getattr(config, name, None) for name in IMAGE_TOKENS)):
        answers[ids == token] = IGNORED
    return answers
