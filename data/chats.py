"""Chats to text, by the template of a tokenizer or a processor, and where in it the answer begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..fusion.errors import DataError
from .media import load_image
from .row import parts_of
from .tokens import common_length


def render(renderer: Any, messages: Sequence[Any], what: str, **options: Any) -> str:
    """Return what the chat template makes of messages.

    Raises:
        DataError: It refuses them.
    """
    try:
        return renderer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # templates raise what they like
        raise DataError(f"the chat template refuses {what}: {error}") from error


def render_marked(renderer: Any, messages: Sequence[Any], first: int, what: str) -> tuple[str, tuple[int, ...]]:
    """Return the text of a chat, and at which character the answer begins that message number `first` opens.

    No place of a template is known, so the chat is rendered a second time with another answer: what both begin with
    comes before it. An answer that is not the assistant's has no begin.
    """
    text = render(renderer, messages, what)
    if messages[first].get("role") != "assistant":
        return text, ()
    other = render(renderer, [*messages[:first], _other(messages[first])], what)
    return text, (common_length(text, other),)


def _other(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        text = "".join(part.get("text") or "" for part in parts_of(message))
        return {"role": message["role"], "content": [{"type": "text", "text": _other_text(text)}]}
    return {"role": message["role"], "content": _other_text(str(content or ""))}


def _other_text(text: str) -> str:
    """Return a word that begins otherwise, after the same white space."""
    word = text.lstrip()
    return text[: len(text) - len(word)] + ("0" if word[:1].isalpha() else "x")


def without_sources(messages: Sequence[Any]) -> list[Any]:
    """Return messages whose image parts name no image, as processors want them."""
    found = []
    for message in messages:
        if isinstance(message.get("content"), list):
            parts = [
                {"type": "image"} if isinstance(part, Mapping) and part.get("type") == "image" else part
                for part in message["content"]
            ]
            message = {**message, "content": parts}
        found.append(message)
    return found


def load_images(images: Sequence[Any], folder: Path, what: str) -> list[Any]:
    """Return the images of a row."""
    return [load_image(image, folder, what) for image in images]
