"""Chats to text, by the template of a tokenizer or a processor, and where in it the answer begins."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..fusion.errors import DataError, first_line
from ..fusion.rows import RowOptions
from .parts import MEDIA, parts_of
from .row import MAX_ROW_BYTES, Row, as_text
from .tokens import common_length

TEMPLATE_SECONDS = 10  # for one chat; templates take a thousandth of a second
HUGE_NUMBER = re.compile(r"\d{9,}")  # such as `'x'.center(3000000000)`, one step that nothing can interrupt


@dataclass(frozen=True, kw_only=True, eq=False)
class Template:
    """A chat template and what it is told.

    Attributes:
        renderer: The tokenizer or processor that it is of.
        name: Which of several, or the template itself; None is the renderer's own choice.
        arguments: What it is told of every chat.
    """

    renderer: Any
    name: str | None
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, renderer: Any, options: RowOptions) -> Template:
        """Return the template that the options ask for.

        Raises:
            DataError: The renderer has none of that name, and there is no such file.
        """
        name = options.chat_template
        known = renderer.chat_template if isinstance(renderer.chat_template, Mapping) else {}
        if name is not None and name not in known:
            try:
                name = Path(name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                names = f"; it has {', '.join(f'`{one}`' for one in known)}" if known else ""
                raise DataError(
                    f"`{name}` is neither a file nor a chat template of `{renderer.name_or_path}`{names}"
                    if hasattr(renderer, "name_or_path")
                    else f"`{name}` is neither a file nor one of the model's chat templates{names}",
                    options=["chat_template"],
                ) from error
        return cls(renderer=renderer, name=name, arguments=options.template_arguments or {})

    def options(self, row: Row) -> dict[str, Any]:
        """Return what `apply_chat_template` is given besides the messages of a row."""
        found = {**self.arguments, **row.template_arguments}
        named: dict[str, Any] = {} if self.name is None else {"chat_template": self.name}
        if row.tools is not None:
            named["tools"] = row.tools
            known = self.renderer.chat_template
            if self.name is None and isinstance(known, Mapping) and "tool_use" in known:
                named["chat_template"] = "tool_use"  # as tokenizers choose; processors do not
        return {**found, **named}

    def render(self, row: Row, messages: Sequence[Any], **options: Any) -> str:
        """Return what the template makes of messages.

        The template came along with the model: transformers has it run in a sandbox, and here it gets no more time and
        room than a chat can need.

        Raises:
            DataError: It refuses them, takes too long or too much, or has no place for the row's tools.
        """
        text = self._rendered(row, without_sources(messages), self.options(row) | options)
        if row.tools is not None:
            toolless = {key: value for key, value in self.options(row).items() if key != "tools"}
            if text == self._rendered(row, without_sources(messages), toolless | options):
                raise DataError(f"{row.what} holds `tools`, which the chat template does not use")
        return as_text(text, "messages", row.what)

    def _rendered(self, row: Row, messages: Sequence[Any], options: Mapping[str, Any]) -> str:
        template = self.renderer.chat_template if self.name is None else self.name
        huge = HUGE_NUMBER.search(template) if isinstance(template, str) else None
        if huge:
            raise DataError(
                f"the chat template for {row.what} has the number {huge[0]} in it, and would fill the memory"
            )
        try:
            with _limited(TEMPLATE_SECONDS):
                text = self.renderer.apply_chat_template(list(messages), tokenize=False, **options)
        except TimeoutError as error:
            raise DataError(f"the chat template takes more than {TEMPLATE_SECONDS} s for {row.what}") from error
        except Exception as error:  # templates raise what they like
            raise DataError(f"the chat template refuses {row.what}: {first_line(error)}") from error
        if len(text) > MAX_ROW_BYTES:
            raise DataError(f"the chat template makes more than {MAX_ROW_BYTES >> 20} MiB of {row.what}")
        return text

    def render_marked(self, row: Row, messages: Sequence[Any], first: int) -> tuple[str, tuple[int, ...]]:
        """Return the text of a chat, and at which character the answer begins that message number `first` opens.

        No place of a template is known, so the chat is rendered a second time with another answer: what both begin
        with comes before it. An answer that is not the assistant's has no begin.
        """
        text = self.render(row, messages)
        if messages[first].get("role") != "assistant":
            return text, ()
        other = self.render(row, [*messages[:first], _other(messages[first])])
        return text, (common_length(text, other),)

    def spelled(self, row: Row, messages: Sequence[Any]) -> list[Any]:
        """Return the messages with their texts as parts, where the template loses those that are none.

        Many processors' templates go through parts, and through the letters of a text without a word.
        """
        as_parts = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message.get("content"), str)
            else message
            for message in messages
        ]
        said = [message["content"].strip() for message in messages if isinstance(message.get("content"), str)]
        if not said:
            return list(messages)
        text = self.render(row, messages)
        if all(words in text for words in said):
            return list(messages)
        spelled = self.render(row, as_parts)
        return (
            as_parts if sum(words in spelled for words in said) > sum(words in text for words in said) else [*messages]
        )


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
    """Return messages whose parts name no image, video or sound, for templates."""
    return [_with_parts(message, lambda part: {"type": part["type"]}) for message in messages]


def _with_parts(message: Any, made: Any) -> Any:
    if not isinstance(message.get("content"), list):
        return message
    parts = [made(part) if part.get("type") in MEDIA else part for part in message["content"]]
    return {**message, "content": parts}


def with_sources(messages: Sequence[Any], load: Any) -> list[Any]:
    """Return messages whose images, videos and sounds are loaded.

    Args:
        load: Kind and source to what the processor takes.
    """
    return [
        _with_parts(message, lambda part: {**part, part["type"]: load(part["type"], part.get(part["type"]))})
        for message in messages
    ]
