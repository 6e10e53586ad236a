"""Chats to text, by the template of a tokenizer or a processor, and where in it the answer begins."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..fusion.errors import DataError, first_line
from .media import load_image
from .row import MAX_ROW_BYTES, parts_of
from .tokens import common_length

TEMPLATE_SECONDS = 10  # for one chat; templates take a thousandth of a second
HUGE_NUMBER = re.compile(r"\d{9,}")  # such as `'x'.center(3000000000)`, one step that nothing can interrupt


def render(renderer: Any, messages: Sequence[Any], what: str, **options: Any) -> str:
    """Return what the chat template makes of messages.

    The template came along with the model: transformers has it run in a sandbox, and here it gets no more time and room
    than a chat can need.

    Raises:
        DataError: It refuses them, or takes too long or too much.
    """
    template = getattr(renderer, "chat_template", None)
    huge = HUGE_NUMBER.search(template) if isinstance(template, str) else None
    if huge:
        raise DataError(f"the chat template for {what} has the number {huge[0]} in it, and would fill the memory")
    try:
        with _limited(TEMPLATE_SECONDS):
            text = renderer.apply_chat_template(list(messages), tokenize=False, **options)
    except TimeoutError as error:
        raise DataError(f"the chat template takes more than {TEMPLATE_SECONDS} s for {what}") from error
    except Exception as error:  # templates raise what they like
        raise DataError(f"the chat template refuses {what}: {first_line(error)}") from error
    if len(text) > MAX_ROW_BYTES:
        raise DataError(f"the chat template makes more than {MAX_ROW_BYTES >> 20} MiB of {what}")
    return text


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the block takes longer; in the main thread alone, the one that Python can interrupt."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
