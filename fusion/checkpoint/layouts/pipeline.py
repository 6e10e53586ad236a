"""A pipeline of diffusers: models in folders of their own, which `model_index.json` lists.

It is one model here: a tensor's name is that of its component and, after a slash, its own, as in
`unet/down_blocks.0.resnets.0.conv1.weight`. So one fuse makes a whole pipeline, with the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np

from ...errors import CheckpointError
from ...file_kinds import PIPELINE
from ...ref import ModelRef
from ..companions import Companion, look_beside
from ..folder import Checkpoint, holds_weights
from ..identity import FileIdentity, identities
from ..json_file import read_json
from ..source import Source, Stored


def is_pipeline(folder: Path) -> bool:
    """Return whether a folder holds a pipeline."""
    return (folder / PIPELINE).is_file()


@final
class Pipeline(Source):
    """All components of a pipeline that have weights.

    Raises:
        CheckpointError: One cannot be read, or none has weights.
    """

    def __init__(self, ref: ModelRef) -> None:
        self.ref, self.folder = ref, ref.path
        listed = read_json(ref.path / PIPELINE)
        if not isinstance(listed, dict):
            raise CheckpointError(f"`{ref.path / PIPELINE}` is not a JSON object")
        self._components = {
            name: Checkpoint(ModelRef(asked=f"{ref}/{name}", path=ref.path / name))
            for name, value in sorted(listed.items())
            if isinstance(value, list) and Path(name).name == name and holds_weights(ref.path / name)
        }
        if not self._components:
            raise CheckpointError(f"`{ref}` is a pipeline of diffusers, and no component of it has weights")
        self.files = tuple(file for model in self._components.values() for file in model.all_files)
        self.file_names = {name: model.file_names[""] for name, model in self._components.items()}
        self.said = tuple(said for model in self._components.values() for said in model.said)
        self.wrappers = {key: count for model in self._components.values() for key, count in model.wrappers.items()}
        self._identities = identities([ref.path / PIPELINE])
        self.tensors = {
            f"{component}/{name}": info._replace(name=f"{component}/{name}")
            for component, model in self._components.items()
            for name, info in model.tensors.items()
        }

    def _of(self, name: str) -> tuple[Checkpoint, str]:
        component, _, own = name.partition("/")
        return self._components[component], own

    def name_in_file(self, name: str) -> str:
        """Return what a tensor is called in its component's file."""
        model, own = self._of(name)
        return model.name_in_file(own)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of a component's tensor."""
        model, own = self._of(name)
        return model.read(own, start, stop)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of memory held for a component's tensor."""
        model, own = self._of(name)
        model.release(own, start, stop)

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> Stored | None:
        """Return where a component's tensor lies."""
        model, own = self._of(name)
        return model.stored(own, start, stop)

    def mapped(self) -> dict[Path, np.ndarray]:
        """Return the bytes of all components' files."""
        return {file: content for model in self._components.values() for file, content in model.mapped().items()}

    def identities(self) -> dict[Path, FileIdentity]:
        """Return all components' files, and what lists them."""
        found = (model.identities() for model in self._components.values())
        return self._identities | {file: identity for one in found for file, identity in one.items()}

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the components' files say of themselves, together."""
        return {key: value for model in self._components.values() for key, value in model.metadata.items()}

    def beside(self) -> list[Companion]:
        """Return all that lies in the pipeline's folder beside the weights: schedulers, tokenizers, configurations."""
        assert self.folder is not None
        found = []
        for one in look_beside(self.folder, self.files):
            if one.name.parts[0] in self._components:
                continue
            is_whole = one.kind == "weights" and len(one.name.parts) == 1
            found.append(
                replace(one, left="another form of the weights, which are no longer these") if is_whole else one
            )
        for component, model in self._components.items():
            found += [replace(one, name=Path(component) / one.name) for one in model.beside()]
        return sorted(found, key=lambda one: one.name)
