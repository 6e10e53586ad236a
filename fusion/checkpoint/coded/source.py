"""A quantised checkpoint as a model of plain weights: each tensor is decoded when it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from ...file_kinds import CONFIG
from ..companions import Companion
from ..json_file import read_json
from ..quantised import codes_in
from ..source import Source
from ..tensor_info import TensorInfo
from ..view import View
from .coded import Coded
from .recognise import coded_tensors, without_said

# Files that say how the weights beside them were quantised.
TOLD = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json")
CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".prob_scale", ".k_proj.output_scale", ".v_proj.output_scale")


@final
class Decoded(View):
    """A checkpoint whose codes are read as the floats that the format's own library makes of them.

    Attributes:
        coded: What is decoded, by name.
        idle: Tensors that only the codes needed.
    """

    def __init__(self, own: Source, coded: Mapping[str, Coded]) -> None:
        super().__init__(own)
        self.coded = coded
        self.made = coded.keys()
        used = {part for found in coded.values() for part in found.parts}
        self.idle = frozenset(used | {name for name in own.tensors if name.endswith(CACHE_SCALES)})
        first = {found.parts[0]: found.info for found in coded.values()}
        tensors: dict[str, TensorInfo] = {}
        for name, info in own.tensors.items():
            if name in first:
                tensors[first[name].name] = first[name]
            elif name not in self.idle:
                tensors[name] = info
        self.tensors = tensors

    @property
    def decoded(self) -> Mapping[str, int]:
        """How many tensors are decoded, by the name of their format."""
        return Counter(found.format for found in self.coded.values())

    def coded_as(self, name: str) -> Coded | None:
        """Return how a tensor is stored."""
        return self.coded.get(name)

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The model's `config.json`, of plain weights."""
        config = self._own.config
        if config is None or next(codes_in(self.tensors, config), None) is not None:
            return config  # it still says what the codes are that nothing decodes
        return without_said(config)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the model's files say of themselves, but for the layout of codes."""
        return {key: value for key, value in self._own.metadata.items() if key != "format"}

    def beside(self) -> Sequence[Companion]:
        """Return what lies beside the model's weights; what says how they were quantised is never copied."""
        return [
            replace(found, left="it says how the weights were quantised, which they no longer are")
            if str(found.name) in TOLD and found.left is None
            else found
            for found in self._own.beside()
        ]

    def companions(self) -> Mapping[Path, Path]:
        """Return what the model is shipped with."""
        return {name: file for name, file in self._own.companions().items() if str(name) not in TOLD}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1`, decoded where they are codes."""
        found = self.coded.get(name)
        if found is None:
            return self._own.read(name, start, stop)
        return found.read(start, found.info.num_elements if stop is None else stop)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of the pages of codes, and with no range of their scales."""
        found = self.coded.get(name)
        if found is None:
            self._own.release(name, start, stop)
        elif start == 0 and stop is None:
            for part in found.parts:
                self._own.release(part)
        elif found.in_order:
            codes, end = self._own.tensors[found.parts[0]], found.info.num_elements
            first, last = (at * codes.num_elements // max(1, end) for at in (start, end if stop is None else stop))
            self._own.release(found.parts[0], first, last)


def decoded(own: Source) -> Source:
    """Return a checkpoint as plain weights; itself where it has no codes that can be decoded.

    Raises:
        CheckpointError: Codes and scales do not fit.
    """
    coded = coded_tensors(own, _config(own))
    return Decoded(own, coded) if coded else own


def _config(own: Source) -> Mapping[str, Any] | None:
    """Return a checkpoint's configuration, that beside a file, with what GPTQ and AWQ used to say in another file."""
    file = own.path.parent / CONFIG
    config = own.config if own.folder is not None or not file.is_file() else read_json(file)
    folder = own.folder or own.path.parent
    if isinstance(config, Mapping) and "quantization_config" not in config:
        for name in TOLD[:2]:
            if (folder / name).is_file() and (said := read_json(folder / name)):
                return {**config, "quantization_config": said}
    return config if isinstance(config, Mapping) else None
