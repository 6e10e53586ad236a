"""The general set that ships: short and long texts of many kinds, to protect what a base is good at.

A file of JSON lines a kind in `configs/general/`, whose SOURCES.md says what each is and where it comes from. Of some
kinds it has questions alone, which each model answers itself (`predict/general.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import xxhash

from ..fusion.errors import DataError
from .sounds import QUESTIONS, SOUNDS, sound

SUFFIX = ".jsonl"
ASKED = ("chats", "images", "sounds")  # kinds of questions that a model answers itself


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


def digest_of_set() -> str:
    """Return a digest of all texts and of the questions about pictures."""
    digest = xxhash.xxh3_128()
    for kind in kinds():
        digest.update(kind.encode())
        digest.update((_folder() / f"{kind}{SUFFIX}").read_bytes())
    digest.update((_folder() / "images" / f"questions{SUFFIX}").read_bytes())
    return digest.hexdigest()


def asked(kind: str) -> tuple[Mapping[str, Any], ...]:
    """Return the rows of a kind that a model is to answer itself: each a `prompt`, with what it is about beside."""
    if kind == "chats":
        return tuple({"prompt": [{"role": "user", "content": question}]} for question in texts("questions"))
    if kind == "images":
        return tuple(_pictured())
    # A sampling rate is not named: each model takes them at its own.
    return tuple({"audio": {"array": sound(name)}, "prompt": question} for question in QUESTIONS for name in SOUNDS)


def _pictured() -> Iterator[dict[str, Any]]:
    folder = _folder() / "images"
    for line in (folder / f"questions{SUFFIX}").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {"image": (folder / row["image"]).read_bytes(), "prompt": row["prompt"]}


def chosen_kinds(names: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds that are named, each once, in their own order; all that are texts where none is.

    Raises:
        DataError: There is no such kind.
    """
    known = (*kinds(), *ASKED)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"the general set has no kind `{unknown[0]}`", hint=f"its kinds are {', '.join(known)}")
    return tuple(kind for kind in known if kind in names) if names else kinds()
