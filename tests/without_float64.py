"""A device that has no float64, as Apple's: tensors on it are CPU tensors in a wrapper that names another device.

Every operation on the device runs on the CPU; one that gives float64 raises what torch raises there. As on a real
device, a tensor on it and one on the CPU do not mix, unless one is a single number. On request it has float64, as CUDA:
then only that mixing is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sculpt.fusion import device
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "lazy"  # a type of device that torch knows and that needs no driver to be named
DEVICE = torch.device(NAME)


class _There(torch.Tensor):
    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _There:
        # Its storage is the CPU tensor's own, so that views and `.data` behave as on a real device.
        return torch.Tensor._make_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, inner, False, dispatch_device=True, device_for_backend_keys=DEVICE
        )

    @property
    def inner(self) -> torch.Tensor:
        """The CPU tensor with the same storage."""
        with torch._C._DisableTorchDispatch():  # pyright: ignore[reportAttributeAccessIssue]
            place = self.storage_offset(), self.shape, self.stride()
            return torch.empty(0, dtype=self.dtype).set_(self.untyped_storage(), *place)

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(tensor, _There) for tensor in tensors)
    copies = func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy, torch.ops.aten.to)
    if there and not copies and any(not isinstance(tensor, _There) and tensor.ndim for tensor in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
    places = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
    if places:
        there = places[0].type == NAME
        args, kwargs = tree_map(lambda leaf: torch.device("cpu") if leaf == DEVICE else leaf, (args, kwargs))
    if func is torch.ops.prim.device.default:
        return DEVICE
    bare_args, bare = tree_map(lambda leaf: leaf.inner if isinstance(leaf, _There) else leaf, (args, kwargs))
    if func.overloadpacket is torch.ops.aten._to_copy and torch.device("cpu") == kwargs.get("device"):
        bare_args = (bare_args[0].clone(), *bare_args[1:])  # a copy, though both are the CPU's
    out = func(*bare_args, **bare)
    if func._schema.is_mutable:
        named = dict(zip((own.name for own in func._schema.arguments), args, strict=False)) | kwargs
        written = [named[own.name] for own in func._schema.arguments if own.alias_info and own.alias_info.is_write]
        return written[0] if len(written) == 1 else tuple(written)

    def wrapped(value: Any) -> Any:
        if not (there and isinstance(value, torch.Tensor)):
            return value
        if value.dtype == torch.float64 and NAME in device.WITHOUT_FLOAT64:
            raise TypeError(f"the device has no float64, which {func} gives")
        return _There(value)

    return tree_map(wrapped, out)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Makes tensors of Python's numbers and NumPy's arrays on the CPU first: torch does that below any dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = (kwargs or {}).get("device")
        if func in (torch.asarray, torch.tensor) and device is not None and torch.device(device).type == NAME:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **(kwargs or {}))


@contextmanager
def device_without_float64(*, but_has_it: bool = False) -> Iterator[str]:
    """Yield the name of a device that refuses float64, which exists while the block runs, on all its threads.

    Args:
        but_has_it: It refuses nothing but tensors of the CPU.
    """
    run = threading.Thread.run

    def run_there(thread: threading.Thread) -> None:
        with _Mode(), _Functions():
            run(thread)

    with pytest.MonkeyPatch.context() as patch, _Mode(), _Functions():
        patch.setattr(device, "WITHOUT_FLOAT64", () if but_has_it else (NAME,))
        patch.setattr(threading.Thread, "run", run_there)
        yield NAME
