"""The rows of a task's file, checked for what a scorer needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data.rows import Rows, open_rows
from ..fusion.errors import DataError


class TaskRows:
    """The rows of one file, under our names for their fields.

    Attributes:
        rows: As they are read.
    """

    def __init__(self, file: Path, *, limit: int | None, fields: Mapping[str, str]) -> None:
        self.rows: Rows = open_rows(file)
        self._count = self.rows.count if limit is None else min(limit, self.rows.count)
        self._fields = fields

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        for number in range(self._count):
            row = dict(self.rows.read(number))
            for ours, theirs in self._fields.items():
                if theirs not in row:
                    raise DataError(f"row {number + 1} of `{self.rows.name}` has no `{theirs}`, which `fields` names")
                row[ours] = row[theirs]
            yield Row(row, f"row {number + 1} of `{self.rows.name}`", self.rows.folder)


class Row:
    """One row; its accessors refuse what does not fit, by number and file.

    Attributes:
        what: Names it in messages.
        folder: What paths in it are relative to.
    """

    def __init__(self, content: Mapping[str, Any], what: str, folder: Path) -> None:
        self._content = content
        self.what = what
        self.folder = folder

    def __contains__(self, key: str) -> bool:
        return self._content.get(key) is not None

    def get(self, key: str) -> Any:
        """Return a field.

        Raises:
            DataError: The row has none of that name.
        """
        if key not in self:
            known = ", ".join(f"`{name}`" for name in self._content) or "nothing"
            raise DataError(f"{self.what} has no `{key}`; it holds {known}", hint="`fields` in the suite renames them")
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
