"""Options whose types are checked when they are made: whoever builds them of a file's words gets a sentence."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import MethodError

WORDED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    NoneType: "none",
}


class Options:
    """A frozen, keyword-only dataclass of options.

    Raises:
        MethodError: A value is not of its field's type.
    """

    def __new__(cls, **options: Any) -> Any:
        """Check the values before the dataclass looks at their ranges."""
        hints = _hints(cls)
        for name, value in options.items():
            if name in hints and not _fits(value, hints[name]):
                raise MethodError(f"`{name}` must be {_worded(hints[name])}, got `{value}`", options=[name])
        return super().__new__(cls)


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    return get_type_hints(cls)


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type; what is no plain type is not looked into."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Annotated:
        return _fits(value, parts[0])
    if origin is Literal:
        return any(value is part or (type(value) is type(part) and value == part) for part in parts)
    if origin is tuple:
        return isinstance(value, (tuple, list)) and (parts[-1] is not ... or all(_fits(one, parts[0]) for one in value))
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real  # NumPy's own too
        is_huge = isinstance(value, int) and abs(value) > sys.float_info.max
        return isinstance(value, kind) and not isinstance(value, bool) and not is_huge
    kind = origin or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _worded(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_worded, parts)))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        return f"a list of {_worded(parts[0]).removeprefix('a ')}s"
    return WORDED.get(hint, getattr(hint, "__name__", str(hint)))
