"""A model whose output vocabulary is a tensor of its own, where it was tied to the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from ..errors import CheckpointError
from ..names import config_values, tied_source
from .adapter.module_names import ModelNames
from .source import Source, Stored

TIES = "tie_word_embeddings"


@final
class UntiedSource(Source):
    """A tied model that stores both: the output under the name that transformers has for it, with the same elements.

    Raises:
        CheckpointError: It is not tied, or it cannot be told which tensor stands for its output.
    """

    def __init__(self, own: Source) -> None:
        self._own = own
        self.ref, self.folder, self.files, self.index = own.ref, own.folder, own.files, own.index
        name, shape = ModelNames(own).output_embeddings()
        shapes = {known: info.shape for known, info in own.tensors.items()}
        source = None if name in shapes else tied_source(name, shapes, shape, own.config)
        if source is None:
            raise CheckpointError(f"`{own.ref}` does not tie `{name}` to its embeddings")
        self._output, self._embeddings = name, source
        self.tensors = {**own.tensors, name: replace(own.tensors[source], name=name)}

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The model's `config.json`, which says that nothing is tied."""
        return untied(self._own.config or {})

    @cached_property
    def fingerprint(self) -> str:
        """The model's own."""
        return self._own.fingerprint

    def companions(self) -> Mapping[Path, Path]:
        """Return what the model is shipped with."""
        return self._own.companions()

    def _name(self, name: str) -> str:
        return self._embeddings if name == self._output else name

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements of the tensor, of the output the embeddings'."""
        return self._own.read(self._name(name), start, stop)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of mapped pages."""
        self._own.release(self._name(name), start, stop)

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Stored | None:
        """Return where the elements lie."""
        return self._own.stored(self._name(name), start, stop)

    def mapped(self) -> Mapping[Path, np.ndarray]:
        """Return the bytes of the model's files."""
        return self._own.mapped()


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that ties nothing, in itself and in those nested in it that say otherwise."""

    def changed(part: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: False if key == TIES else changed(value) if isinstance(value, Mapping) else value
            for key, value in part.items()
        }

    assert config_values(config, TIES) != {False}  # the source refused it
    return {**changed(config), TIES: False}
