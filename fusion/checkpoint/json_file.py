"""JSON files of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .foreign import refuse_foreign_file


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
