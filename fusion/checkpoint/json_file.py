"""JSON files of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError
from .foreign import refuse_foreign_file

Plain = TypeVar("Plain")


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        CheckpointError: The file is unreadable or not JSON.
    """
    refuse_foreign_file(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read `{file}`: {error}") from error


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter  # takes a moment, and most commands read no such file

    return TypeAdapter(kind)


def checked(kind: type[Plain], content: Mapping[str, Any]) -> Plain:
    """Return an instance of a dataclass, with those within it, of plain values as JSON has them.

    Types are taken at their word: text is not a number, 1.0 no count. Keys that are no field are left out.

    Raises:
        CheckpointError: A field is missing or of another type; the sentence names it.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"`{place}`: {first['msg'][:1].lower()}{first['msg'][1:]}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(str(error)) from error
