"""One vocabulary for models that differ in theirs: each sees its embeddings in the rows of the output's tokens.

A model keeps its own embedding of every token that it has. For a token that it lacks it is given one, so that it pulls
the token nowhere: the base's, where the base has it; the only model's that has it; else the mean of those that have it.
These are mergekit's rules. Rows beyond the tokens (a padded vocabulary) are kept where the output's tokenizer is one
model's own, and are the mean of all where `pad_to_multiple_of` asks for more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from ..checkpoint import Source
from ..checkpoint.identity import FileIdentity
from ..checkpoint.view import View
from ..errors import MethodError
from ..names import config_values, is_vocabulary
from .recipe import TokenSource

Tokens = Mapping[str, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One model of a merge with its vocabulary.

    Attributes:
        label: Names the model in errors.
        tokens: Its tokenizer's tokens, those beyond its embedding left out.
    """

    label: str
    checkpoint: Source
    tokens: Tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class RowMap:
    """For every output row and model, which rows of which models make its embedding.

    Attributes:
        own: (models, rows) row of the model's own embedding, or -1.
        donors: Output row to the (model, row) pairs whose mean is given to the models that lack it; empty is zero.
        forced: Output rows in which every model gets the donors' embedding.
        padding: First row that is the mean of all tokens.
    """

    own: np.ndarray
    donors: Mapping[int, tuple[tuple[int, int], ...]]
    forced: frozenset[int]
    padding: int

    @property
    def num_rows(self) -> int:
        """Rows of the output's embedding."""
        return self.own.shape[1]


def vocabulary_rows(checkpoint: Source) -> int:
    """Return the number of rows of a model's embedding.

    Raises:
        MethodError: No tensor is known to be the embedding.
    """
    sizes = config_values(checkpoint.config, "vocab_size")
    rows = {info.shape[0] for name, info in checkpoint.tensors.items() if is_vocabulary(name) and info.shape}
    found = rows & sizes or rows
    if len(found) != 1:
        raise MethodError(
            f"`{checkpoint.ref}`: it is unclear which tensor holds the vocabulary, so it cannot be aligned"
        )
    return next(iter(found))


def align_vocabularies(
    members: Sequence[Member],
    output: Tokens,
    *,
    base: int | None,
    sources: Mapping[str, TokenSource],
    labels: Mapping[Any, int],
    pad_to_multiple_of: int | None,
    like: int | None,
) -> RowMap:
    """Return how the models' rows make the output's.

    Args:
        output: The output tokenizer's tokens.
        base: Which member is the base.
        sources: For tokens that want a certain embedding.
        labels: Which member a `TokenSource` names.
        like: The member whose tokenizer the output has: its padding is kept.

    Raises:
        MethodError: A token is to come from a model that lacks it.
    """
    limits = [vocabulary_rows(member.checkpoint) for member in members]
    num_tokens = max(output.values(), default=-1) + 1
    num_rows = num_tokens
    if pad_to_multiple_of:
        num_rows = -(-num_tokens // pad_to_multiple_of) * pad_to_multiple_of
    elif like is not None:
        num_rows = max(num_tokens, limits[like])
    own = np.full((len(members), num_rows), -1, np.int64)
    for k, member in enumerate(members):
        for token, row in output.items():
            place = member.tokens.get(token, -1)
            own[k, row] = place if place < limits[k] else -1
        if like is not None and not pad_to_multiple_of and limits[k] == limits[like]:
            unnamed = np.setdiff1d(np.arange(num_rows), np.fromiter(output.values(), np.int64))
            own[k, unnamed] = unnamed
    donors: dict[int, tuple[tuple[int, int], ...]] = {}
    forced = set()
    for token, row in output.items():
        source = sources.get(token)
        if source is not None:
            donors[row] = _asked_for(token, source, members, labels, limits)
            if source.force:
                forced.add(row)
            continue
        holders = [k for k in range(len(members)) if own[k, row] >= 0]
        if base is not None and base in holders and len(holders) > 1:
            holders = [base]
        donors[row] = tuple((k, int(own[k, row])) for k in holders)
    padding = num_tokens if num_rows > num_tokens and (own[:, num_tokens:] < 0).any() else num_rows
    return RowMap(own=own, donors=donors, forced=frozenset(forced), padding=padding)


def _asked_for(
    token: str, source: TokenSource, members: Sequence[Member], labels: Mapping[Any, int], limits: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    if source.model is None:
        return ()
    if source.model not in labels:
        raise MethodError(
            f"the embedding of `{token}` should come from `{source.model}`, which is not part of the merge"
        )
    k = labels[source.model]
    wanted = token if source.token is None else source.token
    row = wanted if isinstance(wanted, int) else members[k].tokens.get(wanted, -1)
    if not 0 <= row < limits[k]:
        raise MethodError(f"`{members[k].label}` has no token `{wanted}`, which `{token}` should come from")
    return ((k, row),)


@final
class AlignedVocabulary(View):
    """A model with its vocabulary tensors in the output's rows."""

    def __init__(self, member: int, members: Sequence[Member], alignment: RowMap) -> None:
        super().__init__(members[member].checkpoint)
        self._member, self._members, self._alignment = member, members, alignment
        own, rows = self._own, vocabulary_rows(self._own)
        self._counterparts = {  # the vocabulary tensors, as each member calls them
            name: [_counterpart(name, other) for other in members]
            for name, info in own.tensors.items()
            if is_vocabulary(name) and info.shape and info.shape[0] == rows
        }
        self.made = self._counterparts
        self.tensors = {
            name: info._replace(shape=(alignment.num_rows, *info.shape[1:])) if name in self.made else info
            for name, info in own.tensors.items()
        }
        self._means: dict[str, np.ndarray] = {}

    def identities(self) -> Mapping[Path, FileIdentity]:
        """Return the files of all members, whose rows it may have."""
        return {file: found for other in self._members for file, found in other.checkpoint.identities().items()}

    def _row(self, member: int, name: str, row: int) -> np.ndarray:
        checkpoint, name = self._members[member].checkpoint, self._counterparts[name][member]
        width = checkpoint.tensors[name].num_elements // checkpoint.tensors[name].shape[0]
        return checkpoint.read(name, row * width, (row + 1) * width)

    def _made(self, name: str, row: int, dtype: np.dtype, width: int) -> np.ndarray:
        alignment = self._alignment
        if row >= alignment.padding:
            return self._mean_row(name, dtype, width)
        own = int(alignment.own[self._member, row])
        if own >= 0 and row not in alignment.forced:
            return self._row(self._member, name, own)
        found = [self._row(k, name, place).astype(np.float64) for k, place in alignment.donors.get(row, ())]
        return (sum(found) / len(found)).astype(dtype) if found else np.zeros(width, dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def _mean_row(self, name: str, dtype: np.dtype, width: int) -> np.ndarray:
        if name not in self._means:
            rows = (self._made(name, row, dtype, width).astype(np.float64) for row in range(self._alignment.padding))
            self._means[name] = (sum(rows) / max(1, self._alignment.padding)).astype(dtype)  # pyright: ignore[reportAttributeAccessIssue]
        return self._means[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tensor, a vocabulary's in the output's rows."""
        if name not in self.made:
            return self._own.read(name, start, stop)
        info = self.tensors[name]
        stop = info.num_elements if stop is None else stop
        width = info.num_elements // info.shape[0]
        dtype = info.kind.numpy
        assert dtype is not None
        first, last = start // width, -(-stop // width)
        own = self._alignment.own[self._member, first:last]
        if start == stop:
            return np.empty(0, dtype)
        # Most tiles hold rows that lie in the model's own tensor in the same order: these are read as they are.
        if (np.diff(own) == 1).all() and own[0] >= 0 and not self._alignment.forced & set(range(first, last)):
            offset = int(own[0]) - first
            return self._own.read(name, start + offset * width, stop + offset * width)
        rows = np.concatenate([self._made(name, row, dtype, width) for row in range(first, last)])
        return rows[start - first * width : stop - first * width]

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of mapped pages; rows from other places are let go of with the whole tensor."""
        if name not in self.made:
            self._own.release(name, start, stop)
        elif start == 0 and stop is None:
            self._own.release(name)


def aligned(members: Sequence[Member], alignment: RowMap) -> list[Source]:
    """Return the models with their vocabulary tensors in the output's rows.

    Raises:
        MethodError: A vocabulary tensor of one model is not to be found in another.
    """
    return [AlignedVocabulary(k, members, alignment) for k in range(len(members))]


def _counterpart(name: str, member: Member) -> str:
    tensors = member.checkpoint.tensors
    if name in tensors:
        return name
    rows = vocabulary_rows(member.checkpoint)
    others = [other for other, info in tensors.items() if is_vocabulary(other) and info.shape and info.shape[0] == rows]
    if len(others) != 1:
        raise MethodError(f"`{name}` is missing in `{member.label}`, so vocabularies cannot be aligned")
    return others[0]
