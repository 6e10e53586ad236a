"""One `.bin`, `.pt`, `.pth` or `.ckpt` file of tensors, as `torch.save` writes it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ..dtypes import BY_TORCH_NAME
from ..errors import CheckpointError
from .foreign import needs_running, torch_error
from .inert import name_of
from .mapped_file import MappedFile
from .tensor_info import TensorInfo
from .torch_archive import StoredTensor, TorchArchive, is_archive

if TYPE_CHECKING:
    import torch

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
EXTRA = "_extra_state"  # what a module keeps beside its tensors, at the end of its name


def model_in(content: Any) -> tuple[Any, list[str]]:
    """Return the state dict in what a trainer saved, and the names of what lies beside it."""
    left: list[str] = []
    while isinstance(content, Mapping):
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        left += [str(key) for key in content if key != inner]
        content = content[inner]
    return content, left


def state_dict(file: Path, content: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the tensors of a file, and the names of what is left out."""
    found, left = model_in(content)
    if not isinstance(found, Mapping):
        named = name_of(found)
        if named is not None:
            raise needs_running(file, named)
        kind = "Tensor" if isinstance(found, StoredTensor) else type(found).__name__
        raise CheckpointError(f"`{file}` holds a {kind}, not a state dict")
    tensors: dict[str, Any] = {}
    for name, value in found.items():
        named = name_of(value)
        if isinstance(name, str) and name.endswith(EXTRA):
            left.append(name)
        elif named is not None and "sparse" in named:
            raise CheckpointError(f"`{name}` in `{file}` is stored sparsely, which sculpt cannot read")
        elif named is not None:
            raise needs_running(file, named)
        elif not isinstance(name, str) or not (isinstance(value, StoredTensor) or hasattr(value, "layout")):
            raise CheckpointError(f"`{file}` is not a state dict: `{name}` is a {type(value).__name__}")
        else:
            tensors[name] = value
    return tensors, left


@final
class TorchFile:
    """The tensors of a torch file, through a memory map.

    Attributes:
        left: Names of what lies beside the model in it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._mapped = MappedFile(file)
        self.identity = self._mapped.identity
        self.metadata: dict[str, str] = {}
        read = TorchArchive(self._mapped).content if is_archive(self._mapped) else _load_old(file)
        self._held, self.left = state_dict(file, read)
        tensors: dict[str, TensorInfo] = {}
        for name, tensor in self._held.items():
            code = tensor.kind.code if isinstance(tensor, StoredTensor) else _code_of(file, name, tensor)
            tensors[name] = TensorInfo(name=name, dtype=code, stored=code, shape=tuple(tensor.shape), file=file)
        self.tensors: Mapping[str, TensorInfo] = tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat tensor as stored."""
        info, tensor = self.tensors[name], self._held[name]
        if isinstance(tensor, StoredTensor):
            return tensor.read(start, info.num_elements if stop is None else stop)
        assert info.kind.numpy is not None  # others are refused when they are opened
        return as_array(tensor.detach().reshape(-1)[start:stop], info.kind.numpy)

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Let go of the memory pages of elements that have been used."""
        tensor = self._held[name]
        if isinstance(tensor, StoredTensor):
            tensor.release(start, tensor.num_elements if stop is None else stop)

    def extent(self, name: str, start: int = 0, stop: int | None = None) -> tuple[int, int] | None:
        """Return where elements begin and end in the file; None where they do not follow one another."""
        tensor = self._held[name]
        if not isinstance(tensor, StoredTensor):
            return None
        return tensor.extent(start, tensor.num_elements if stop is None else stop)

    def content(self) -> np.ndarray | None:
        """Return all bytes of the file, as a view; None of one that torch read."""
        is_mapped = any(isinstance(tensor, StoredTensor) for tensor in self._held.values())
        return self._mapped.content() if is_mapped else None


def _load_old(file: Path) -> Any:
    """Return what a file older than torch 1.6 holds, which is no archive, through torch's own restricted unpickler."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise torch_error(file, error) from error


def _code_of(file: Path, name: str, tensor: torch.Tensor) -> str:
    """Return the dtype of a tensor that torch read.

    Raises:
        CheckpointError: It is none that is read here.
    """
    if str(tensor.layout) != "torch.strided" or tensor.is_meta:
        raise CheckpointError(f"`{name}` in `{file}` is stored as {tensor.layout}, which sculpt cannot read")
    torch_name = str(tensor.dtype).removeprefix("torch.")
    if torch_name not in BY_TORCH_NAME:
        raise CheckpointError(f"`{name}` in `{file}` is {torch_name}, which sculpt cannot read")
    return BY_TORCH_NAME[torch_name].code


def as_array(flat: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """Return a flat torch tensor on the CPU as an array, a view where it is contiguous.

    By way of its bytes, because torch hands NumPy no bfloat16.
    """
    import torch

    if not flat.numel():
        return np.empty(0, dtype)
    return flat.contiguous().view(torch.uint8).numpy().view(dtype)
