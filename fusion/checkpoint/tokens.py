"""Which token each row of a vocabulary stands for, by `tokenizer.json`; no tokenizer is made for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..file_kinds import TOKENIZER
from .json_file import read_json
from .source import Source


def tokens_of(content: Any) -> dict[int, str]:
    """Return the token of each row that a `tokenizer.json` names; none where it is of an unknown form."""
    if not isinstance(content, Mapping):
        return {}
    vocabulary = (content.get("model") or {}).get("vocab")
    found: dict[int, str] = {}
    if isinstance(vocabulary, Mapping):
        found = {row: token for token, row in vocabulary.items()}
    elif isinstance(vocabulary, list):  # a unigram model: (token, score) in the order of the rows
        found = {row: entry[0] for row, entry in enumerate(vocabulary)}
    return found | {added["id"]: added["content"] for added in content.get("added_tokens") or ()}


def other_tokens(models: Sequence[Source]) -> Iterator[str]:
    """Yield a note on each model whose vocabulary has other tokens in rows that the first one's has too."""
    files = [(model, model.companions().get(Path(TOKENIZER))) for model in models]
    known = [(model, file) for model, file in files if file is not None]
    for model, file in known[1:]:
        first, own = known[0][1], file
        if first == own or first.read_bytes() == own.read_bytes():
            continue
        try:
            before, after = tokens_of(read_json(first)), tokens_of(read_json(own))
        except CheckpointError as error:
            yield f"tokens are not compared: {error.message}"
            continue
        rows = [row for row, token in sorted(after.items()) if before.get(row, token) != token]
        if rows:
            more = f", and so on in {len(rows)} rows" if len(rows) > 1 else ""
            yield (
                f"row {rows[0]} of the vocabulary is `{before[rows[0]]}` in `{known[0][0].ref}` and `{after[rows[0]]}` "
                f"in `{model.ref}`{more}: `tokenizer: union` aligns rows by their tokens"
            )
