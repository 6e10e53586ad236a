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
        fields: Where the data name a field otherwise: ours=theirs, such as prompt=question,completion=answer.
        bad_rows: error, or skip: leave out and count rows that cannot be read or do not suit the model.
        unknown_fields: error, or ignore: what to do about a field of a row that nothing reads.
        media: Folder of the images and sound that rows name; nothing outside it is read. Default: the data's own.
        too_long: What becomes of a sample over the longest length: cut (of a prompt its beginning goes, before any of
            the completion does), drop, or error.
        chat_template: The template of chats: its name among several, or a file. Default: the model's own.
        template_arguments: What the template is told besides, such as enable_thinking=false.
    """

    fields: Mapping[str, str] | None = None
    bad_rows: OrSkip = "error"
    unknown_fields: OrIgnore = "error"
    media: Path | None = None
    too_long: TooLong = "cut"
    chat_template: str | None = None
    template_arguments: Mapping[str, Any] | None = None
