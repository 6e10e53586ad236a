"""A method by its name, with options: `ties`, `dare:sparsity=0.8`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from ..errors import MethodError, did_you_mean
from . import METHODS
from .method import Method


def method_named(text: str) -> Method:
    """Return the method of `ties`, or of `adadare:allocation=exact,scope=block`.

    Raises:
        MethodError: There is no such method or option, or an option cannot have the value.
    """
    name, _, options = text.partition(":")
    method = METHODS.get(name.strip())
    if method is None:
        raise MethodError(f"no method is called `{name}`", hint=did_you_mean(name, list(METHODS)))
    hints = get_type_hints(method)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(method)}
    values: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        key = key.strip().replace("-", "_")
        if key not in fields or not value:
            raise MethodError(f"`{option}` is not an option of {method.title}", hint=f"it has {', '.join(fields)}")
        values[key] = _value(value.strip(), fields[key])
    return method(**values)


def options_told(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return options as people read them: `yes` and `no`, lists without brackets; what is not set is left out."""
    return [(key.replace("_", " "), _told(value)) for key, value in options.items() if value is not None]


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_told, value)) if isinstance(value, (list, tuple)) else str(value)


def _value(text: str, hint: object) -> Any:
    if hint is bool:
        return text.lower() in ("true", "yes", "1")
    try:
        return float(text)
    except ValueError:
        return text
