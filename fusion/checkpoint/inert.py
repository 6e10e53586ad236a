"""What a pickle holds, as plain values: nothing that it names is imported, and nothing of it runs.

A pickle is a program that calls what it names. Here a name is only a name: what it would have made is an `Inert` that
remembers the name, the arguments and the state. So a checkpoint with an optimiser, a trainer's settings or a library's
own classes beside its weights is read without that library, and without trust in whoever wrote it.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

# Made by a pickle as they are: they hold values and can do nothing else.
PLAIN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("builtins", "complex"): complex,
}


@final
class Inert:
    """Something that a pickle would have had made.

    Attributes:
        of: The name of what makes it, such as `torch.float32`.
        args: What that would have been called with; None where it was named and not called.
        state: What it would have been filled with; None where it was not.
    """

    __slots__ = ("args", "of", "state")

    def __init__(self, of: str, args: tuple[Any, ...] | None = None) -> None:
        self.of, self.args, self.state = of, args, None

    def __repr__(self) -> str:
        return self.of

    def __call__(self, *args: Any) -> Inert:
        """Return what calling it would have made."""
        return Inert(self.of, args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def field(self, name: str) -> Any:
        """Return a field of an object whose state is one, or None."""
        return self.state.get(name) if isinstance(self.state, Mapping) else None

    # What is made by a name may be a list or a mapping of its own kind, that is filled item by item.
    def append(self, _: Any) -> None:
        """Forget an item."""

    def extend(self, _: Iterable[Any]) -> None:
        """Forget items."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Forget an item."""

    def add(self, _: Any) -> None:
        """Forget an item."""


@final
class _Unpickler(pickle._Unpickler):  # written in Python: to the one in C a few damaged bytes are gigabytes of memory
    def __init__(self, stream: io.BytesIO, known: Mapping[str, Callable[..., Any]], persistent: Any) -> None:
        super().__init__(stream)
        self._known, self._persistent = known, persistent

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        plain = PLAIN.get((module, name))
        if plain is not None:
            return plain
        found = self._known.get(f"{module}.{name}")
        # A class of its own for each: a pickle that writes into what it was given changes nothing of ours.
        return _class_of(f"{module}.{name}") if found is None else _Maker(found)

    def persistent_load(self, pid: Any) -> Any:
        """Return what stands for something that lies outside the pickle."""
        return self._persistent(pid)


def _class_of(name: str) -> Any:
    """Return a class whose instances are inert; `NEWOBJ` takes nothing but a class."""

    class Made:
        def __new__(cls, *args: Any, **_: Any) -> Any:  # pyright: ignore[reportInconsistentConstructor]
            return Inert(name, args)

    Made.__qualname__ = name
    return Made


@final
class _Maker:
    """A function of ours that a pickle may call, and not write into."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)


def name_of(value: Any) -> str | None:
    """Return the name that a pickle gave, whether it named something or had it made; None of a plain value."""
    if isinstance(value, Inert):
        return value.of
    return value.__qualname__ if isinstance(value, type) and value.__name__ == "Made" else None


def unpickled(
    content: bytes | memoryview,
    known: Mapping[str, Callable[..., Any]] | None = None,
    persistent: Callable[[Any], Any] = lambda pid: Inert("persistent", (pid,)),
) -> Any:
    """Return what a pickle holds.

    Args:
        known: Functions of ours by the name of what a pickle would call.
        persistent: Gives what lies outside the pickle.

    Raises:
        Exception: Of any kind, where the pickle is damaged.
    """
    return _Unpickler(io.BytesIO(content), known or {}, persistent).load()
