"""A model whose output vocabulary is a tensor of its own, where it was tied to the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from ..errors import CheckpointError
from ..names import config_values, tied_source
from .adapter.module_names import ModelNames
from .source import Source
from .view import View

TIES = "tie_word_embeddings"


@final
class UntiedSource(View):
    """A tied model that stores both: the output under the name that transformers has for it, with the same elements.

    Raises:
        CheckpointError: It is not tied, or it cannot be told which tensor stands for its output.
    """

    def __init__(self, own: Source) -> None:
        super().__init__(own)
        name, shape = ModelNames(own).output_embeddings()
        shapes = {known: info.shape for known, info in own.tensors.items()}
        source = None if name in shapes else tied_source(name, shapes, shape, own.config)
        if source is None:
            raise CheckpointError(f"`{own.ref}` does not tie `{name}` to its embeddings")
        self._embeddings = source
        self.made = (name,)
        self.tensors = {**own.tensors, name: own.tensors[source]._replace(name=name)}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements of the tensor, of the output the embeddings'."""
        return super().read(self._embeddings if name in self.made else name, start, stop)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of mapped pages."""
        super().release(self._embeddings if name in self.made else name, start, stop)


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that ties nothing, in itself and in those nested in it that say otherwise."""

    def changed(part: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: False if key == TIES else changed(value) if isinstance(value, Mapping) else value
            for key, value in part.items()
        }

    assert config_values(config, TIES) != {False}  # the source refused it
    return {**changed(config), TIES: False}
