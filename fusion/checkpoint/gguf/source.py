"""A model in llama.cpp's format, read as the checkpoint in the transformers layout that it was converted from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np

from ...dtypes import BY_TORCH_NAME, DTYPES
from ...errors import CheckpointError
from ...ref import ModelRef
from ..companions import Companion, look_beside
from ..identity import FileIdentity
from ..source import Source
from ..tensor_info import TensorInfo
from .described import describe
from .file import GgufFile
from .layout import GgufParameter
from .names import gguf_files


@final
class GgufSource(Source):
    """One file, or several that a model was split into.

    Raises:
        CheckpointError: It cannot be read, or transformers does not know its architecture.
        ModelError: transformers cannot make its config or tokenizer.
    """

    def __init__(self, ref: ModelRef) -> None:
        files = gguf_files(ref.path)
        self.ref, self.files = ref, tuple(files)
        self._asked = ref.path if ref.path.is_dir() else None
        self._files = [GgufFile(file) for file in files]
        place = {name: opened for opened in self._files for name in opened.header.tensors}
        if len(place) < sum(len(opened.header.tensors) for opened in self._files):
            raise CheckpointError(f"parts of `{ref}` hold tensors of the same names")
        self._described = found = describe(self._files, self._asked)
        self.folder = found.folder
        self.tensors: Mapping[str, TensorInfo] = {}
        self._parameters: dict[str, GgufParameter] = {}
        main = self._dtype
        for layout in found.layouts:
            kind = DTYPES["F32"] if layout.wide else main
            stored = [(place[part], place[part].header.tensors[part]) for part in layout.parts]
            self.tensors[layout.name] = TensorInfo(
                name=layout.name, dtype=kind.code, stored=kind.code, shape=layout.shape, file=stored[0][0].file
            )
            assert kind.numpy is not None
            self._parameters[layout.name] = GgufParameter(layout, stored, kind.numpy)
        self._kinds = Counter(
            place[layout.parts[0]].header.tensors[layout.parts[0]].kind.name for layout in found.layouts
        )

    @property
    def _dtype(self):
        config = self.config or {}
        named = BY_TORCH_NAME.get(str(config.get("dtype") or config.get("torch_dtype")))
        return named if named is not None and named.fusible else DTYPES["BF16"]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out: layers that transformers has not."""
        left = list(self._described.left)
        if not left:
            return ()
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        return (f"`{left[0]}`{more} of `{self.ref}` left out: layers beyond the model's that predict further tokens",)

    @property
    def decoded(self) -> Mapping[str, int]:
        """How many tensors are decoded, by the name of their type."""
        return {f"GGUF's {name}": count for name, count in self._kinds.items() if name not in ("F32", "F16", "BF16")}

    @cached_property
    def _beside(self) -> list[Companion]:
        own = look_beside(self._asked, self.files) if self._asked is not None else []
        made = look_beside(self._described.folder, ())
        names = {companion.name for companion in made}
        return sorted([*made, *(found for found in own if found.name not in names)], key=lambda found: found.name)

    def beside(self) -> list[Companion]:
        """Return the config and the tokenizer that the file describes, and what lies in the model's folder."""
        return self._beside

    def identities(self) -> dict[Path, FileIdentity]:
        """Return the files as they were when they were opened."""
        return {opened.file: opened.identity for opened in self._files}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1`, decoded."""
        return self._parameters[name].read(start, self.tensors[name].num_elements if stop is None else stop)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of the pages of the blocks that elements lie in."""
        self._parameters[name].release(start, self.tensors[name].num_elements if stop is None else stop)
