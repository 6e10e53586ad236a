"""One `.bin` or `.pt` file of tensors, through torch's own restricted unpickler."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from ..dtypes import BY_TORCH_NAME
from ..errors import CheckpointError
from .foreign import torch_error
from .tensor_info import TensorInfo

if TYPE_CHECKING:
    import torch

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def _refuse_inflated(file: Path) -> None:
    """Refuse an archive that would take more memory than it has bytes: `torch.save` compresses nothing."""
    try:
        with zipfile.ZipFile(file) as archive:
            packed = next((entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED), None)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # no archive, or a damaged one, of which torch has its own to say
    if packed is not None:
        raise CheckpointError(f"`{file}` is compressed (`{packed.filename}`), which no file of torch's own is")


def _load(file: Path) -> Mapping[str, torch.Tensor]:
    import torch

    _refuse_inflated(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files older than torch 1.6 are not zip archives and cannot be mapped
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise torch_error(file, error) from error
    if isinstance(loaded, Mapping):  # trainers put the model beside the optimiser
        loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"`{file}` holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"`{file}` is not a state dict: `{name}` is a {type(value).__name__}")
        if value.layout is not torch.strided or value.is_meta:
            raise CheckpointError(f"`{name}` in `{file}` is stored as {value.layout}, which sculpt cannot read")
    return loaded


@final
class TorchFile:
    """The tensors of a torch file, memory-mapped where the format allows."""

    def __init__(self, file: Path) -> None:
        self.file = file
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
