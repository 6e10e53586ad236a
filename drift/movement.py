"""How far a model moved from its base on each kind of the general set, on rows that nothing was measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.encoding import Encoder
from ..data.example import Example
from ..data.sampling import held_out
from ..fusion.checkpoint import Source, open_checkpoint
from ..fusion.checkpoint.tokens import other_tokens
from ..fusion.errors import DataError, ModelError
from ..fusion.progress import Progress, silent
from ..predict.general import general_rows
from .divergence import Moved, divergences
from .reader import HowToRun, Reader
from .remembered import remembered_logits

TOKENS = 128  # of each kind that are compared
MOST = 64  # of one sample
ANSWERED_AT_ONCE = 8
MAX_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How far each kind of data moved, the one that moved most first.

    Attributes:
        without: Kinds of which nothing can be said, as every row of theirs was measured.
    """

    kinds: tuple[Moved, ...]
    without: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kinds": [moved.as_json() for moved in self.kinds], "without": list(self.without)}


# What two models are compared on, as the base's encoder makes it; and the kinds that should be among it.
ToCompare = tuple[Sequence[Example], Sequence[str]]


def movement(
    base: Source,
    other: Source | Path,
    how: HowToRun,
    *,
    kinds: Sequence[str] = (),
    chats: bool = True,
    seed: int = 0,
    measured: Sequence[tuple[int, Mapping[str, int]]] = (),
    progress: Progress = silent,
) -> Movement:
    """Return how far another model is from its base on each kind of the general set.

    Args:
        kinds: Of the general set; all that suit the base where none is named.
        chats: Whether the base answers questions, in whose answers the two are compared too.
        measured: Of each draw that statistics were measured on, the seed and how many samples of each kind.

    Raises:
        ModelError: The models cannot be compared.
        DataError: Nothing is left to compare them on.
    """

    def drawn(reader: Reader) -> ToCompare:
        encoder = Encoder(
            reader.folder, reader.model, max_length=MAX_LENGTH, trust_remote_code=how.trust_remote_code, ends_texts=True
        )
        with general_rows(
            base,
            encoder,
            kinds=kinds,
            chats=chats,
            seed=seed,
            dtype=how.dtype,
            load=lambda: how.load(base),
            at_once=ANSWERED_AT_ONCE,
        ) as rows:
            found = held_out(rows, encoder, measured, seed=seed, num_tokens=TOKENS, most=MOST)
            return found, [*rows.kinds]

    return movement_on(drawn, base, other, how, remember=True, progress=progress)


def movement_on(
    drawn: Callable[[Reader], ToCompare],
    base: Source,
    other: Source | Path,
    how: HowToRun,
    *,
    remember: bool = False,
    progress: Progress = silent,
) -> Movement:
    """Return how far another model is from its base on what is drawn, given the base as it runs.

    Args:
        remember: Whether what the base predicts is kept in the cache folder, and taken from there.

    Raises:
        ModelError: The base predicts no next tokens, or the other model reads other tokens.
        DataError: Nothing is drawn.
    """
    other = other if isinstance(other, Source) else open_checkpoint(other, base)
    for note in other_tokens([base, other]):
        raise ModelError(f"the next tokens of two models cannot be compared: {note}")
    with Reader(base, how) as before, Reader(other, how) as after:
        if not before.model.can_generate():
            raise ModelError(f"`{type(before.model).__name__}` predicts no next tokens")
        examples, names = drawn(before)
        if not examples:
            raise DataError("no rows are left to compare two models on: all were measured, or hold nothing to predict")
        groups, done = before.groups(examples), 0

        def advance() -> None:
            nonlocal done
            done += 1
            progress(done, before.num_units + after.num_units, "comparing with the base")

        read = remembered_logits if remember else Reader.logits
        found = divergences(read(before, groups, advance=advance), after.logits(groups, advance=advance), groups)
    return Movement(
        kinds=tuple(sorted(found, key=lambda moved: -moved.divergence)),
        without=tuple(sorted(set(names) - {moved.kind for moved in found})),
    )
