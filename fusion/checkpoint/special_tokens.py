"""Ids of special tokens: what a tokenizer's files say, and what configurations say of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..file_kinds import TOKENIZER, TOKENIZER_CONFIG
from .json_file import read_json
from .source import Source

NAMES = ("bos_token", "eos_token", "pad_token")
ENDINGS = ("_token_id", "_token_index")


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """What becomes of ids where another tokenizer is written.

    Attributes:
        special: Ids of the tokenizer's own special tokens, such as `eos_token_id`; None where it has no such token.
        moved: Old id to new id, of tokens that both tokenizers have; None where all ids stay.
    """

    special: Mapping[str, int | None] = field(default_factory=dict)
    moved: Mapping[int, int] | None = None

    def moved_in(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration with the ids of this tokenizer, in nested ones too."""
        return {key: self._value(key, value) for key, value in config.items()}

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self.moved_in(value)
        if not key.endswith(ENDINGS):
            return value
        own = self.special.get(key)
        if isinstance(value, list):  # any of several ends a text
            kept = [new for old in value if (new := self._new(old)) is not None]
            return list(dict.fromkeys([*([own] if own is not None else []), *kept])) or value
        if own is not None and value is not None:
            return own
        new = self._new(value)
        return value if new is None else new

    def _new(self, old: Any) -> int | None:
        return old if self.moved is None else self.moved.get(old)


def own_tokens(model: Source) -> TokenIds | None:
    """Return the ids of an adapter's tokenizer, where it has one whose special tokens are not its base's; else None.

    A model that stands alone has its tokenizer beside its configuration, which is taken at its word.
    """
    if model.base is None or not model.path.is_dir() or model.folder is None:
        return None
    own, base = special_tokens(model.path), special_tokens(model.folder)
    if not own or own == base:
        return None
    return TokenIds(special={f"{name}_id": token_id(model.path, text) for name, text in own.items()})


def unsaid_end(model: Source, configs: Iterable[Mapping[str, Any]]) -> str | None:
    """Return what ends a text by a model's tokenizer and by none of its configurations, as words; None where all agree.

    Text that the model generates never stops there: trainers that set a chat template change the tokenizer alone.
    """
    said = {end for config in configs for end in _ends(config)}
    text = special_tokens(model.folder).get("eos_token") if model.folder is not None and said else None
    own = None if text is None or model.folder is None else token_id(model.folder, text)
    if own is None or own in said:
        return None
    return f"the tokenizer of `{model.ref}` ends a text by `{text}` ({own}), its configuration by {sorted(said)} alone"


def _ends(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the ids that end a text, in nested configurations too."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _ends(value)
        elif key == "eos_token_id":
            yield from (end for end in (value if isinstance(value, list) else [value]) if isinstance(end, int))


def special_tokens(folder: Path) -> dict[str, str]:
    """Return the texts of a tokenizer's special tokens, as its files have them, by name."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", TOKENIZER_CONFIG):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        for key in NAMES:
            token = content.get(key) if isinstance(content, dict) else None
            text = token.get("content") if isinstance(token, Mapping) else token
            if isinstance(text, str):
                found[key] = text
    return found


def token_id(folder: Path, text: str) -> int | None:
    """Return the id of a token, as a tokenizer's files have it; None where they do not say."""
    for name in (TOKENIZER_CONFIG, TOKENIZER, "added_tokens.json", "vocab.json"):
        content = read_json(folder / name) if (folder / name).is_file() else None
        if not isinstance(content, dict):
            continue
        for row, token in (content.get("added_tokens_decoder") or {}).items():
            if isinstance(token, Mapping) and token.get("content") == text:
                return int(row)
        for token in content.get("added_tokens") or ():
            if isinstance(token, Mapping) and token.get("content") == text:
                return int(token["id"])
        model = content.get("model")
        vocabulary = model.get("vocab") if isinstance(model, Mapping) else content
        if isinstance(vocabulary, Mapping) and isinstance(vocabulary.get(text), int):
            return vocabulary[text]
        if isinstance(vocabulary, list):  # pairs of token and score, in the order of their ids
            return next((row for row, pair in enumerate(vocabulary) if pair[:1] == [text]), None)
    return None
