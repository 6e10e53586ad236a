"""A model seen another way: some of its tensors under other names or in another form, the rest as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .companions import Companion
from .identity import FileIdentity
from .source import Source, Stored

if TYPE_CHECKING:
    from .coded.coded import Coded


class View(Source):
    """A source over another; a class of this kind says what becomes of the tensors in `made`.

    Attributes:
        made: Names of the tensors that are not the other's own; `read` gives them.
    """

    made: Collection[str] = ()

    def __init__(self, own: Source) -> None:
        self._own = own
        self.ref, self.folder, self.files, self.index = own.ref, own.folder, own.files, own.index
        self.wrappers, self.said, self.tensors = own.wrappers, own.said, own.tensors
        self.is_foreign, self.file_names, self.is_elsewhere = own.is_foreign, own.file_names, own.is_elsewhere

    @property
    def base(self) -> Source | None:
        """What the model is read through."""
        return self._own.base

    @property
    def changed(self) -> frozenset[str] | None:
        """What the model changes; to be seen another way is no change."""
        return self._own.changed

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The model's `config.json`."""
        return self._own.config

    @cached_property
    def fingerprint(self) -> str:
        """The model's own: the view follows from what the other models are."""
        return self._own.fingerprint

    def beside(self) -> Sequence[Companion]:
        """Return what lies beside the model's weights."""
        return self._own.beside()

    def coded_as(self, name: str) -> Coded | None:
        """Return how the model stores a tensor of its own."""
        return None if name in self.made else self._own.coded_as(name)

    @property
    def decoded(self) -> Mapping[str, int]:
        """What the model decodes."""
        return self._own.decoded

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of how the model is read."""
        return self._own.notes

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the model's files say of themselves."""
        return self._own.metadata

    def identities(self) -> Mapping[Path, FileIdentity]:
        """Return the model's files."""
        return self._own.identities()

    def companions(self) -> Mapping[Path, Path]:
        """Return what the model is shipped with."""
        return self._own.companions()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of a tensor of the model's own."""
        return self._own.read(name, start, stop)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of memory held for a tensor of the model's own."""
        self._own.release(name, start, stop)

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Stored | None:
        """Return where a tensor lies that is the model's own."""
        return None if name in self.made else self._own.stored(name, start, stop)

    def mapped(self) -> Mapping[Path, np.ndarray]:
        """Return the bytes of the model's files."""
        return self._own.mapped()
