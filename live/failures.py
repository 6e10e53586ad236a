"""What a model's own code raises, as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..fusion.errors import ModelError, SculptError, first_line


@contextmanager
def plain_failures(model: Any, what: str = "its inputs") -> Iterator[None]:
    """Raise what running a model raises as a `ModelError` that names the model's class and what it was given."""
    try:
        yield
    except SculptError:
        raise
    except Exception as error:  # models, and those of remote code, raise anything
        raise ModelError(f"`{type(model).__name__}` fails on {what}: {first_line(error)}") from error
