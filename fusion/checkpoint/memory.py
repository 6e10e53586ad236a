"""Tensors that are in memory already, as a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from ..dtypes import BY_NUMPY, BY_TORCH_NAME, DType
from ..errors import CheckpointError
from ..ref import ModelRef
from .source import Source
from .tensor_info import TensorInfo
from .torch_file import as_array


@final
class MemorySource(Source):
    """A state dict of NumPy arrays or torch tensors; nothing is copied that is contiguous and on the CPU.

    Args:
        config: What `config.json` would say.
        name: What sentences call it.
    """

    def __init__(
        self, tensors: Mapping[str, Any], *, config: Mapping[str, Any] | None = None, name: str = "state dict"
    ) -> None:
        self.ref = ModelRef(asked=name, path=Path(name))
        self.config = None if config is None else dict(config)
        self._flat: dict[str, np.ndarray] = {}
        self.tensors = found = {}
        for key, tensor in tensors.items():
            dtype = _dtype_of(key, tensor)
            shape = tuple(int(size) for size in tensor.shape)
            self._flat[key] = _flat(tensor, dtype)
            found[key] = TensorInfo(name=key, dtype=dtype.code, stored=dtype.code, shape=shape, file=None)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tensor: a view."""
        return self._flat[name][start:stop]

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Do nothing: the tensors are the caller's."""


def _dtype_of(name: str, tensor: Any) -> DType:
    found = (
        BY_NUMPY.get(tensor.dtype)
        if isinstance(tensor, np.ndarray)
        else BY_TORCH_NAME.get(str(getattr(tensor, "dtype", "")).removeprefix("torch."))
    )
    if found is None or found.numpy is None:
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise CheckpointError(f"`{name}` is {kind}, expected an array or tensor of a dtype that checkpoints store")
    return found


def _flat(tensor: Any, dtype: DType) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor.reshape(-1)
    assert dtype.numpy is not None  # _dtype_of refused others
    return as_array(tensor.detach().cpu().reshape(-1), dtype.numpy)


def like(array: np.ndarray, example: Any) -> Any:
    """Return an array as what `example` is: NumPy's, or a torch tensor on the example's device."""
    if isinstance(example, np.ndarray):
        return array
    import torch

    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, array.dtype.name)).reshape(array.shape).to(example.device)
