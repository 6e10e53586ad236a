"""Kernels as machine code: compiled by Numba once on a machine, then loaded in milliseconds without it.

Importing Numba and letting it load its own cache takes half a second, a fifth of a fuse of a billion parameters. So the
object code that LLVM makes of a kernel is kept, and llvmlite alone brings it back.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, final

import llvmlite
import llvmlite.binding as llvm
import numpy as np
from ml_dtypes import bfloat16

from .cache import user_cache

SOURCE = Path(__file__).parent / "kernels" / "source"
ARITHMETIC = Path(__file__).parent / "arithmetic"
CONSTANTS = ("random.py", "sums.py", "tile.py")  # of `fusion.arithmetic`: numbers that are compiled in
SYMBOL = "sculpt_kernel"

# What Numba takes a stored dtype for: it knows neither bfloat16 nor, on the CPU, float16.
TAKEN_FOR = {np.dtype(bfloat16): "uint16", np.dtype("f2"): "int16", np.dtype("f4"): "float32"}
POINTED = {"F": "float32", "D": "float64", "I": "int32", "B": "uint8", "H": "uint16", "W": "uint32", "Q": "uint64"}

_lock = threading.RLock()
_engines: list[Any] = []  # they own the code


def address(array: np.ndarray) -> int:
    """Return where an array's elements begin."""
    return array.__array_interface__["data"][0]


@cache
def _target() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


@cache
def _folder() -> Path:
    """Return where the code is kept: a folder for each state of the source, of LLVM, and of the processor."""
    digest = sha256(f"{llvmlite.__version__} {llvm.get_host_cpu_name()} {_target().triple}".encode())
    digest.update(llvm.get_host_cpu_features().flatten().encode())
    for file in (Path(__file__), *sorted(SOURCE.glob("*.py")), *map(ARITHMETIC.joinpath, CONSTANTS)):
        digest.update(file.read_bytes())
    return user_cache() / f"kernels-{digest.hexdigest()[:16]}"


def _kept(file: Path) -> bytes | None:
    """Return object code from the cache, if it is there and whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content[32:] if sha256(content[32:]).digest() == content[:32] else None


def _keep(file: Path, code: bytes) -> None:
    """Put object code into the cache, where there is one that can be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.{os.getpid()}")
        beside.write_bytes(sha256(code).digest() + code)
        beside.replace(file)
    except OSError:
        pass


def _compile(module: str, name: str, types: tuple[str, ...]) -> bytes:
    """Return the object code of a function of `source`, with no symbol left that is not its own."""
    # The source stands above this room, and is looked for by its name, as only a machine's first use needs it.
    compiler = import_module(".kernels.source.compiler", __package__)
    text = compiler.llvm_of(module, name, types, SYMBOL)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("declare"))
    foreign = set(re.findall(r"call [^@\n]*@([A-Za-z_][\w.]*)\(", body)) - set(
        re.findall(r"^define [^@\n]*@([\w.]+)\(", body, re.MULTILINE)
    )
    foreign = {found for found in foreign if not found.startswith("llvm.")}
    assert not foreign, f"{module}.{name} calls {foreign}, which nobody provides without Numba"
    return _target().emit_object(llvm.parse_assembly(text))


@final
class Kernel:
    """A function of `source`, compiled for each combination of stored dtypes. It runs without the GIL.

    Args:
        signature: What follows the stored arrays: `u` a whole number (uint64), `f` a float (float64), `F`, `D`, `I`,
            `B`, `H`, `W` and `Q` the address of float32, float64, int32, uint8, uint16, uint32 and uint64 numbers.
    """

    def __init__(self, module: str, name: str, signature: str) -> None:
        self._module = module
        self._name = name
        self._signature = signature.replace(" ", "")
        self._functions: dict[tuple[np.dtype, ...], Any] = {}

    def __call__(self, stored: Sequence[np.ndarray], *rest: float) -> None:
        """Run it on contiguous stored arrays; of other arrays `rest` holds addresses."""
        key = tuple([array.dtype for array in stored])
        function = self._functions.get(key)
        if function is None:
            function = self._load(key)
        function(*[address(array) for array in stored], *rest)

    def _load(self, dtypes: tuple[np.dtype, ...]) -> Any:
        with _lock:
            if dtypes not in self._functions:
                types = (
                    *(TAKEN_FOR[dtype] for dtype in dtypes),
                    *(POINTED.get(kind, kind) for kind in self._signature),
                )
                file = _folder() / f"{self._module}.{self._name}-{'.'.join(types[: len(dtypes)])}-{self._signature}.o"
                code = _kept(file)
                if code is None:
                    code = _compile(self._module, self._name, types)
                    _keep(file, code)
                engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
                engine.add_object_file(llvm.ObjectFileRef.from_data(code))
                engine.finalize_object()
                _engines.append(engine)
                scalars = {"u": ctypes.c_uint64, "f": ctypes.c_double}
                kinds = [scalars.get(found, ctypes.c_void_p) for found in types]
                self._functions[dtypes] = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(SYMBOL))
            return self._functions[dtypes]
