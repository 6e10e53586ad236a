"""How kernels are compiled: the bits that NumPy computes, without the GIL, without anything of Numba left in them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from numba import cfunc, njit, types

# No fast-math and so no fused multiply-add: the bits are those of separate operations. NumPy's error model divides
# without a check for zero, which would keep loops from being vectorised, and raises nothing.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
SCALARS = {"u": types.uint64, "f": types.float64}


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a helper of kernels. All become part of what calls them: a call could raise, and raising needs Numba."""
    return njit(forceinline=True, **OPTIONS)(function)


def llvm_of(module: str, name: str, dtypes: tuple[str, ...], symbol: str) -> str:
    """Return the optimised LLVM code of a kernel under the name `symbol`.

    Args:
        dtypes: Of each argument: a dtype's name for a pointer to it, `u` for uint64, `f` for float64.
    """
    function = getattr(import_module(f".{module}", __package__), name)
    arguments = [SCALARS.get(found) or types.CPointer(getattr(types, found)) for found in dtypes]
    compiled = cfunc(types.void(*arguments), forceinline=True, **OPTIONS)(function)
    return compiled.inspect_llvm().replace(compiled.native_name, symbol)
