"""The class that a row names, for a model with a classification head."""

from __future__ import annotations

from typing import Any

from ..fusion.errors import DataError
from .row import Row


def class_number(row: Row, config: Any) -> int:
    """Return the number of a row's `label`, which is a number or a name that the model's config knows.

    Raises:
        DataError: There is none, or it is none of the model's classes.
    """
    label = row.get("label") if "label" in row else None
    numbers = {str(name): int(number) for number, name in (config.id2label or {}).items()}
    if isinstance(label, str) and label in numbers:
        return numbers[label]
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < config.num_labels:
        return label
    raise DataError(f"`label` of {row.what} is `{label}`, which is not one of the model's {config.num_labels} classes")
