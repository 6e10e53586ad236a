"""What a patch is, and whether it is whole: with its base, whether it makes the very model that it was made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..checkpoint.source import reading
from ..device import all_cores
from ..progress import Progress, silent
from ..ref import ModelRef
from .apply import layout_of
from .contents import FILE, TENSOR, Contents, TensorEntry
from .file import PatchFile
from .forms import FRAME, form_of, num_words
from .frames import in_order
from .source import PatchedSource


@dataclass(frozen=True, kw_only=True)
class TensorFigures:
    """One tensor of a patch.

    Attributes:
        how: `none` where it is the base's, `whole` where the base has none, the recipe's method, or `differences`.
        nbytes: Of the tensor; `coded` what the patch takes for it.
    """

    name: str
    how: str
    nbytes: int
    coded: int
    entry: TensorEntry


def figures(patch: PatchFile) -> list[TensorFigures]:
    """Return what each tensor of a patch takes."""
    found = []
    for name, entry in patch.contents.tensors.items():
        how = "whole" if entry.base is None else entry.recipe.method if entry.recipe else "differences"
        nbytes = num_words(entry.dtype, entry.num_elements) * form_of(entry.dtype).word.itemsize
        coded = len(patch.entry(TENSOR + name))
        found.append(
            TensorFigures(name=name, how=how if entry.changed else "none", nbytes=nbytes, coded=coded, entry=entry)
        )
    return found


def check_alone(path: Path) -> Contents:
    """Return a patch's contents, once every byte of it is found to be as it was written.

    Raises:
        CheckpointError: One is not.
    """
    patch = PatchFile(path)
    for name in patch.contents.tensors:
        patch.frames(name)
        patch.recipe(name)
    for shard in patch.contents.shards:
        patch.header(shard)
    for name, entry in patch.contents.files.items():
        if entry.stored:
            for _ in patch.stored(FILE, name, entry):
                pass
    return patch.contents


def check_with_base(patched: ModelRef, *, threads: int | None = None, progress: Progress = silent) -> Counter[str]:
    """Decode every tensor of a patch over its base, and compare it with the digests; return what there was, by kind.

    Raises:
        OtherBaseError: The base is another than the patch was made from.
        CheckpointError: The patch is damaged.
    """
    contents = check_alone(patched.path)
    source = PatchedSource(patched)
    with reading([source]):
        layout_of(source)
    total, done = sum(figure.nbytes for figure in figures(source.patch)), 0

    def tasks() -> Iterator[Callable[[], str]]:
        for name in contents.tensors:
            for k in range(len(source.frames(name))):
                yield partial(checked, name, k)

    def checked(name: str, k: int) -> str:
        source.decode(name, k)
        source.release_words(name, *source.frames(name).span(k))
        return name

    with reading([source]):
        for name in in_order(tasks(), threads or all_cores()):
            entry = contents.tensors[name]
            done = min(total, done + FRAME * form_of(entry.dtype).word.itemsize)
            progress(done, total, name)
    source.refuse_changed()
    return Counter(figure.how for figure in figures(source.patch))
