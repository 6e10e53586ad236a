"""One row of data: its accessors refuse what does not fit, by number and file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

from ..fusion.errors import DataError
from .layouts import UNTEMPLATED
from .parts import MEDIA, in_order, with_parts

MAX_ROW_BYTES = 1 << 26  # pictures within a row included; a tokenizer takes a hundred times as much for what it makes


@final
class Row:
    """The fields of a row that hold something.

    Attributes:
        what: Names it in messages.
        folder: What paths in it are relative to.
        is_document: Whether its text is running text, of which samples are pieces.
    """

    def __init__(self, content: Mapping[str, Any], what: str, folder: Path, *, is_document: bool = False) -> None:
        self._content = content
        self.what = what
        self.folder = folder
        self.is_document = is_document

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._content if key != UNTEMPLATED)

    def holds_any(self, keys: Iterable[str]) -> bool:
        """Return whether it has one of the fields."""
        return any(key in self._content for key in keys)

    @property
    def names(self) -> str:
        """The names of its fields, for people."""
        return ", ".join(f"`{name}`" for name in self) or "nothing"

    def get(self, key: str) -> Any:
        """Return a field.

        Raises:
            DataError: The row has none of that name.
        """
        if key not in self:
            raise DataError(f"{self.what} has no `{key}`; it holds {self.names}", hint="`fields` renames them")
        return self._content[key]

    def text(self, key: str) -> str:
        """Return a field that is text."""
        return as_text(self.get(key), key, self.what)

    def texts(self, key: str) -> list[str]:
        """Return a field that is one text or several."""
        value = self.get(key)
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(part, str) for part in values):
            raise DataError(f"`{key}` of {self.what} must be text, or a list of texts")
        return values

    @property
    def messages(self) -> tuple[list[dict[str, Any]], int] | None:
        """The messages of a chat and the number of the first that is to be predicted; None for any other row.

        In `messages` that is the last. A `prompt` of messages is followed by a `completion`: messages, or one's text.
        Images, video and sound that stand beside the messages are in them, each in its place.

        Raises:
            DataError: They are no lists of messages.
        """
        if "messages" in self:
            messages = self._messages("messages")
            return self._with_media(messages), len(messages) - 1
        if not isinstance(self._content.get("prompt"), list) or "completion" not in self:
            return None
        prompt, completion = self._messages("prompt"), self._content["completion"]
        if isinstance(completion, str):
            return self._with_media([*prompt, {"role": "assistant", "content": completion}]), len(prompt)
        return self._with_media([*prompt, *self._messages("completion")]), len(prompt)

    @property
    def prompt_messages(self) -> list[dict[str, Any]] | None:
        """The messages of a prompt that is to be answered; None where it is text, or there is none."""
        return self._with_media(self._messages("prompt")) if isinstance(self._content.get("prompt"), list) else None

    def _messages(self, key: str) -> list[Any]:
        value = self._content[key]
        if not isinstance(value, list) or not value or not all(map(_is_message, value)):
            raise DataError(
                f"`{key}` of {self.what} is not a list of messages",
                hint="each has a `role`, and `content` that is text or parts such as `{type: text, text: …}`",
            )
        return value

    def _with_media(self, messages: list[Any]) -> list[dict[str, Any]]:
        return with_parts(messages, self.beside, self.what)

    @property
    def beside(self) -> dict[str, list[Any]]:
        """The images, videos and sounds that its fields name, by kind."""
        found: dict[str, list[Any]] = {}
        for kind in MEDIA:
            value = self._content.get(f"{kind}s", self._content.get(kind))
            if value is None or value == []:
                continue
            is_one = not isinstance(value, list) or (kind == "audio" and _is_signal(value))
            found[kind] = [value] if is_one else value
        return found

    @property
    def media(self) -> dict[str, list[Any]]:
        """Its images, videos and sounds as they are named, those within messages too; empty where it is text alone."""
        chat = self.messages
        messages = chat[0] if chat is not None else self.prompt_messages
        return self.beside if messages is None else in_order(messages)

    @property
    def tools(self) -> list[Any] | None:
        """What the chat's assistant may call, for the template."""
        return self._content.get("tools") or None

    @property
    def template_arguments(self) -> Mapping[str, Any]:
        """What the chat template is told of this row."""
        return self._content.get("chat_template_kwargs") or {}

    def completed(self, completion: str) -> Row:
        """Return the row's prompt with another completion."""
        left_out = {"completion", "messages", UNTEMPLATED}
        kept = {key: value for key, value in self._content.items() if key not in left_out}
        return Row({**kept, "prompt": self.get("prompt"), "completion": completion}, self.what, self.folder)

    def untemplated(self) -> Row:
        """Return the row as a model without a chat template reads it: as text, if it is known how."""
        if UNTEMPLATED not in self:
            return self
        prompt, completion = self._content[UNTEMPLATED]
        return Row({**self._content, "prompt": prompt, "completion": completion}, self.what, self.folder)


def as_text(value: Any, key: str, what: str) -> str:
    """Return a field that is text.

    Raises:
        DataError: It is not, or holds what is no character: half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise DataError(f"`{key}` of {what} must be text, got {type(value).__name__}")
    lone = next((character for character in value if "\ud800" <= character <= "\udfff"), None)
    if lone is not None:
        raise DataError(f"`{key}` of {what} holds U+{ord(lone):04X}, half of a character")
    return value


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if not isinstance(part, str)]
        return all(isinstance(part, Mapping) and isinstance(part.get("text") or "", str) for part in parts)
    return content is None or isinstance(content, str)


def _is_signal(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], (int, float))
