"""What a module takes and gives, taken apart into tensors and a description that JSON can hold."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


class UnsupportedError(Exception):
    """A value holds something that cannot be written down."""


def take_apart(value: Any, keep: Callable[[Tensor], int]) -> Any:
    """Return a description of a value; `keep` is given each tensor and returns the number that stands for it.

    Raises:
        UnsupportedError: The value holds an object of another kind, such as a cache.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"is": value}
    if isinstance(value, Tensor):
        return {"tensor": keep(value)}
    if isinstance(value, Mapping):
        kind = type(value)
        items = [[key, take_apart(item, keep)] for key, item in value.items()]
        if kind is dict:
            return {"dict": items}
        if kind.__module__.startswith("transformers.") and all(isinstance(key, str) for key in value):
            return {"output": [kind.__module__, kind.__qualname__], "items": items}
    if type(value) in (tuple, list):
        return {type(value).__name__: [take_apart(item, keep) for item in value]}
    raise UnsupportedError(type(value).__name__)


def put_together(description: Any, tensor: Callable[[int], Tensor]) -> Any:
    """Return the value of a description; `tensor` gives the tensor of a number."""
    if "is" in description:
        return description["is"]
    if "tensor" in description:
        return tensor(description["tensor"])
    if "dict" in description:
        return {key: put_together(item, tensor) for key, item in description["dict"]}
    if "output" in description:
        module, name = description["output"]
        kind = getattr(importlib.import_module(module), name)
        return kind(**{key: put_together(item, tensor) for key, item in description["items"]})
    if "tuple" in description:
        return tuple(put_together(item, tensor) for item in description["tuple"])
    return [put_together(item, tensor) for item in description["list"]]
