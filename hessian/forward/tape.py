"""What one batch's forward did between units, so that it can be brought back to where it was.

A coroutine cannot be written to disk. But its forward can be run again without computing anything: each unit that it
passed, and each operation between units, gives what it gave then. Of these outputs only those that are still alive
are kept; for the others a stand-in full of NaN is enough, since whatever used them is not computed again either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...live.privates import StorageWeakRef, aliases_of, storage_of
from ..store.gram_store import LostError
from .structure import UnsupportedError, put_together, take_apart


@dataclass
class Handle:
    """A tensor that the forward made, held weakly, and its file once it has one."""

    storage: StorageWeakRef
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    file: str | None = None

    @classmethod
    def of(cls, tensor: Tensor, file: str | None = None) -> Handle:
        """Return a handle of a tensor."""
        storage = StorageWeakRef(tensor.untyped_storage())
        return cls(storage, tensor.dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), file)

    def tensor(self) -> Tensor:
        """Return the tensor, which must be alive."""
        storage = storage_of(self.storage)
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.size, self.stride)  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclass(frozen=True)
class Event:
    """One output: of a unit's module, or of the operation `what`."""

    what: str
    description: Any


UNIT = "unit"


class Tape:
    """The outputs of one batch's forward, in order.

    Attributes:
        events: Those that happened.
        handles: The tensors in them.
        inside: How many calls of units' modules the forward is in; operations inside are not kept.
        unsupported: An output could not be described, so the batch cannot be brought back.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.handles: list[Handle] = []
        self.inside = 0
        self.unsupported = False
        self._replay: deque[tuple[str, Any]] = deque()

    @property
    def replaying(self) -> bool:
        """Whether the forward is being brought back."""
        return bool(self._replay)

    def rewind(self, tensors: Sequence[Tensor]) -> None:
        """Make the next forward give what the events gave; `tensors` are those of the handles."""
        self._replay = deque(
            (event.what, put_together(event.description, tensors.__getitem__)) for event in self.events
        )

    def gave(self, what: str, output: Any) -> None:
        """Note an output."""

        def keep(tensor: Tensor) -> int:
            self.handles.append(Handle.of(tensor))
            return len(self.handles) - 1

        try:
            self.events.append(Event(what, take_apart(output, keep)))
        except UnsupportedError:
            self.unsupported = True

    def next(self, what: str) -> Any:
        """Return the next output of a forward that is brought back.

        Raises:
            LostError: Something else happened then: the forward went another way.
        """
        expected, output = self._replay.popleft()
        if expected != what:
            raise LostError(f"{what} came where {expected} had been")
        return output

    def operation(self, func: Any, args: Sequence[Any], run: Callable[[], Any]) -> Any:
        """Run an operation, or give what it gave between units; views are always made, being parts of what is there."""
        aliases = aliases_of(func)
        if self.inside or not all(aliases):
            return run()
        what = str(func)
        if self._replay:
            output = self.next(what)
            return args[0] if aliases else output
        output = run()
        self.gave(what, output)
        return output
