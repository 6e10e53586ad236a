"""One row of data: its accessors refuse what does not fit, by number and file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

from ..fusion.errors import DataError

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

    def holds_any(self, keys: Iterable[str]) -> bool:
        """Return whether it has one of the fields."""
        return any(key in self._content for key in keys)

    @property
    def names(self) -> str:
        """The names of its fields, for people."""
        return ", ".join(f"`{name}`" for name in self._content) or "nothing"

    def get(self, key: str) -> Any:
        """Return a field.

        Raises:
            DataError: The row has none of that name.
        """
        if key not in self:
            raise DataError(
                f"{self.what} has no `{key}`; it holds {self.names}", hint="`fields` in a suite renames them"
            )
        return self._content[key]

    def text(self, key: str) -> str:
        """Return a field that is text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise DataError(f"`{key}` of {self.what} must be text, got {type(value).__name__}")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a field that is one text or several."""
        value = self.get(key)
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(part, str) for part in values):
            raise DataError(f"`{key}` of {self.what} must be text, or a list of texts")
        return values

    @property
    def messages(self) -> tuple[list[Any], int] | None:
        """The messages of a chat and the number of the first that is to be predicted; None for any other row.

        In `messages` that is the last. A `prompt` of messages is followed by a `completion`: messages, or one's text.

        Raises:
            DataError: They are no lists of messages.
        """
        if "messages" in self:
            messages = self.chat("messages")
            return messages, len(messages) - 1
        if not isinstance(self._content.get("prompt"), list) or "completion" not in self:
            return None
        prompt, completion = self.chat("prompt"), self._content["completion"]
        if isinstance(completion, str):
            return [*prompt, {"role": "assistant", "content": completion}], len(prompt)
        return [*prompt, *self.chat("completion")], len(prompt)

    def chat(self, key: str) -> list[Any]:
        """Return a field that is messages.

        Raises:
            DataError: It is something else.
        """
        value = self._content[key]
        if not isinstance(value, list) or not value or not all(map(_is_message, value)):
            raise DataError(
                f"`{key}` of {self.what} is no list of messages",
                hint="each has a `role`, and `content` that is text or parts such as `{type: text, text: …}`",
            )
        return value

    @property
    def images(self) -> list[Any] | None:
        """Its images as they are named, also those within messages; None where it has none, and it is text."""
        images = self._content.get("images", self._content.get("image"))
        if images not in (None, []):
            return images if isinstance(images, list) else [images]
        # A row of both is read as its `messages`, which then hold the prompt's images too.
        lists = map(self._content.get, ("messages",) if "messages" in self else ("prompt", "completion"))
        within = [
            next((part[key] for key in ("image", "path", "url", "bytes") if part.get(key)), None)
            for messages in lists
            for message in (messages if isinstance(messages, list) else ())
            for part in parts_of(message)
            if part.get("type") == "image"
        ]
        return within or None

    def completed(self, completion: str) -> Row:
        """Return the row's prompt with another completion."""
        kept = {key: self._content[key] for key in ("image", "images") if key in self}
        return Row({**kept, "prompt": self.get("prompt"), "completion": completion}, self.what, self.folder)


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and isinstance(part.get("text", ""), str) for part in content)
    return content is None or isinstance(content, str)


def parts_of(message: Any) -> list[Mapping[str, Any]]:
    """Return the parts of a message's content; none where that is text."""
    content = message.get("content") if isinstance(message, Mapping) else None
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
