"""The general set that ships: short and long texts of many kinds, to protect what a base is good at.

A file of JSON lines a kind in `configs/general/`, whose SOURCES.md says what each is and where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from ..fusion.errors import DataError

SUFFIX = ".jsonl"


def _folder() -> Any:
    return resources.files("sculpt.configs") / "general"


@cache
def kinds() -> tuple[str, ...]:
    """Return the names of all kinds, sorted."""
    return tuple(sorted(file.name.removesuffix(SUFFIX) for file in _folder().iterdir() if file.name.endswith(SUFFIX)))


@cache
def texts(kind: str) -> tuple[str, ...]:
    """Return the texts of a kind."""
    lines = (_folder() / f"{kind}{SUFFIX}").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["text"] for line in lines)


def questions() -> tuple[str, ...]:
    """Return what users ask of a chat model, in several languages, without answers."""
    return texts("questions")


def chosen_kinds(names: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds that are named, each once, in their own order; all where none is.

    Raises:
        DataError: There is no such kind.
    """
    unknown = [name for name in names if name not in kinds()]
    if unknown:
        raise DataError(f"the general set has no kind `{unknown[0]}`", hint=f"its kinds are {', '.join(kinds())}")
    return tuple(kind for kind in kinds() if kind in names or not names)
