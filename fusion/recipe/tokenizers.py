"""The tokenizer of the output: the base's, another model's, or the union of all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import Source
from ..checkpoint.companions import own_files
from ..checkpoint.output.scratch import Scratch
from ..checkpoint.pretrained import load_pretrained
from ..checkpoint.special_tokens import NAMES, TokenIds
from ..errors import MethodError
from ..file_kinds import TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_STEMS
from .vocabulary import Tokens, vocabulary_rows

Finish = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputTokens:
    """The output's vocabulary, and how its files are written into a folder."""

    tokens: Tokens
    write: Finish
    tokenizer: Any

    def ids_for(self, folder: Path | None) -> TokenIds | None:
        """Return what becomes of the ids that a configuration beside a tokenizer speaks of; None where all stay."""
        if folder is None:
            return None
        before = load_tokenizer(folder, str(folder))
        moved = {row: self.tokens[token] for token, row in before.get_vocab().items() if token in self.tokens}
        special, old = (
            {f"{name}_id": getattr(found, f"{name}_id", None) for name in NAMES} for found in (self.tokenizer, before)
        )
        stays = special == old and all(row == new for row, new in moved.items())
        return None if stays else TokenIds(special=special, moved=moved)


def tokenizer_folder(model: Source) -> Path | None:
    """Return where a model's tokenizer lies: an adapter may have one of its own, with the tokens that it added."""
    files = model.companions()
    found = next((files[name] for name in map(Path, (TOKENIZER_CONFIG, TOKENIZER)) if name in files), None)
    return model.folder if found is None else found.parent


def load_tokenizer(folder: Path | None, label: str) -> Any:
    """Return the transformers tokenizer of a model's folder, without the network.

    Raises:
        MethodError: It is a single file.
        ModelError: There is none that transformers can load.
    """
    if folder is None:
        raise MethodError(f"`{label}` is a single file, so it has no tokenizer", hint="name its folder")
    from transformers import AutoTokenizer

    return load_pretrained(AutoTokenizer, folder, "tokenizer", use_fast=True)


def known_tokens(tokenizer: Any, checkpoint: Any) -> dict[str, int]:
    """Return the tokens that have an embedding, by their id."""
    rows = vocabulary_rows(checkpoint)
    return {token: row for token, row in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]) if row < rows}


def taken_from(folder: Path, tokenizer: Any, checkpoint: Any, added: Iterable[str]) -> OutputTokens:
    """Return a model's own vocabulary; its files are copied as they are unless tokens are added."""
    tokens = known_tokens(tokenizer, checkpoint)
    new = [token for token in added if token not in tokens]
    if new:
        return _extended(tokenizer, new)

    def write(target: Path) -> None:
        _clear(target)
        for name, file in own_files(folder, filter(_is_tokenizer_file, folder.iterdir())).items():
            shutil.copyfile(file, target / name)

    return OutputTokens(tokens=tokens, write=write, tokenizer=tokenizer)


def union(tokenizers: Sequence[Any], vocabularies: Sequence[Mapping[str, int]], added: Iterable[str]) -> OutputTokens:
    """Return the first model's vocabulary, then each further model's tokens that are new, in the order of their ids."""
    known = set(vocabularies[0])
    new: list[Any] = []
    for tokenizer, vocabulary in zip(tokenizers[1:], vocabularies[1:], strict=True):
        special = {info.content: info for info in tokenizer.added_tokens_decoder.values()}
        for token in vocabulary:
            if token not in known:
                known.add(token)
                new.append(special.get(token, token))
    new += [token for token in added if token not in known]
    return _extended(tokenizers[0], new)


def _extended(tokenizer: Any, new: Sequence[Any]) -> OutputTokens:
    from transformers import AutoTokenizer

    with Scratch() as scratch:  # the given one stays as it is
        tokenizer.save_pretrained(scratch.folder)
        extended = load_pretrained(AutoTokenizer, scratch.folder, "tokenizer", use_fast=True)
    for token in new:
        extended.add_tokens(token)

    def write(target: Path) -> None:
        _clear(target)
        extended.save_pretrained(target)

    return OutputTokens(tokens=dict(extended.get_vocab()), write=write, tokenizer=extended)


def _is_tokenizer_file(file: Path) -> bool:
    return file.name.partition(".")[0] in TOKENIZER_STEMS


def _clear(target: Path) -> None:
    for file in target.iterdir():
        if file.is_file() and _is_tokenizer_file(file):
            file.unlink()
