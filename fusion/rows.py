"""How rows of data are read: what every command that takes data is told of them. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .typed import Options

OrSkip = Literal["error", "skip"]
OrIgnore = Literal["error", "ignore"]
TooLong = Literal["cut", "drop", "error"]


@dataclass(frozen=True, kw_only=True)
class RowOptions(Options):
    """How rows of data are read.

    Attributes:
        fields: Other names of fields in the data: ours=theirs, such as prompt=question,completion=answer.
        bad_rows: error, or skip: leave out and count rows that cannot be read or do not suit the model.
        unknown_fields: error, or ignore: what to do with a field that sculpt does not know.
        media: Folder of the images and sound that rows name; nothing outside it is read. Default: the folder of the
            data.
        too_long: What to do with a sample that is too long: cut it (first the beginning of the prompt, then the end
            of the completion), drop it, or error.
        chat_template: Template for chats: its name, if the model has several, or a file. Default: the model's own.
        template_arguments: Arguments for the template, such as enable_thinking=false.
    """

    fields: Mapping[str, str] | None = None
    bad_rows: OrSkip = "error"
    unknown_fields: OrIgnore = "error"
    media: Path | None = None
    too_long: TooLong = "cut"
    chat_template: str | None = None
    template_arguments: Mapping[str, Any] | None = None
