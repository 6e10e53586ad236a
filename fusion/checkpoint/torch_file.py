"""One `.bin` or `.pt` file of tensors, through torch's own restricted unpickler."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from ..dtypes import BY_TORCH_NAME
from ..errors import CheckpointError, first_line
from .identity import FileIdentity
from .tensor_info import TensorInfo

if TYPE_CHECKING:
    import torch


def _load(file: Path) -> Mapping[str, torch.Tensor]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files older than torch 1.6 are not zip archives and cannot be mapped
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise CheckpointError(
            f"cannot read `{file}` as a torch file of tensors: {first_line(error)}",
            hint="files that need arbitrary code to unpickle are refused; save the model as safetensors",
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"`{file}` holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"`{file}` is not a state dict: `{name}` is a {type(value).__name__}")
    return loaded


@final
class TorchFile:
    """The tensors of a torch file, memory-mapped where the format allows."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.identity = FileIdentity.of(file)
        self.metadata: dict[str, str] = {}
        self._loaded = _load(file)
        self.tensors: dict[str, TensorInfo] = {}
        for name, tensor in self._loaded.items():
            torch_name = str(tensor.dtype).removeprefix("torch.")
            if torch_name not in BY_TORCH_NAME:
                raise CheckpointError(f"`{name}` in `{file}` is {torch_name}, which sculpt cannot read")
            self.tensors[name] = TensorInfo(
                name=name,
                dtype=BY_TORCH_NAME[torch_name].code,
                stored=BY_TORCH_NAME[torch_name].code,
                shape=tuple(tensor.shape),
                file=file,
            )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tensor as stored."""
        dtype = self.tensors[name].kind.numpy
        if dtype is None:
            raise CheckpointError(f"`{name}` in `{self.file}` is {self.tensors[name].dtype}, which sculpt cannot read")
        return as_array(self._loaded[name].detach().reshape(-1)[start:stop], dtype)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Do nothing: torch owns the pages."""

    def extent(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Return None: how a pickle lays out its tensors is torch's business."""

    def content(self) -> None:
        """Return None."""


def as_array(flat: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """Return a flat torch tensor on the CPU as an array, a view where it is contiguous.

    By way of its bytes, because torch hands NumPy no bfloat16.
    """
    import torch

    if not flat.numel():
        return np.empty(0, dtype)
    return flat.contiguous().view(torch.uint8).numpy().view(dtype)
