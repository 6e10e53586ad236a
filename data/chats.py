"""Chats to text, by the template of a tokenizer or a processor, and where in it the answer begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..fusion.errors import DataError, first_line
from ..fusion.rows import RowOptions
from .parts import MEDIA, parts_of
from .row import Row, as_text
from .tokens import common_length


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

        Raises:
            DataError: It refuses them, or has no place for the row's tools.
        """
        text = self._rendered(row, without_sources(messages), self.options(row) | options)
        if row.tools is not None:
            toolless = {key: value for key, value in self.options(row).items() if key != "tools"}
            if text == self._rendered(row, without_sources(messages), toolless | options):
                raise DataError(f"{row.what} holds `tools`, which the chat template has no place for")
        return as_text(text, "messages", row.what)

    def _rendered(self, row: Row, messages: Sequence[Any], options: Mapping[str, Any]) -> str:
        try:
            return self.renderer.apply_chat_template(list(messages), tokenize=False, **options)
        except Exception as error:  # templates raise what they like
            raise DataError(f"the chat template refuses {row.what}: {first_line(error)}") from error

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
