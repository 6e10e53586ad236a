"""The weights of the next unit, on their way while the present one computes.

For an accelerator a thread reads and converts them, puts them into page-locked memory, and a stream of its own sends
them. On a CPU, where a second unit would be memory and a thread a core, the system is told which pages are wanted next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ...fusion.checkpoint import Source
from ...fusion.checkpoint.pages import want
from ...live.names import Assembly

Read = Callable[[Assembly], Mapping[str, Tensor]]


@dataclass(frozen=True)
class _Sent:
    """Tensors that are on the device once an event is over; None where they are there."""

    values: Mapping[str, Tensor]
    event: Any


@final
class Ahead:
    """What was asked for ahead of its turn.

    Args:
        read: Returns what a conversion makes of tensors of the checkpoint; called on another thread.
        device: Where they are to be.
        dtypes: By name, what they are computed in there; others stay as they are stored.
    """

    def __init__(
        self, checkpoint: Source, read: Read, device: torch.device, dtypes: Callable[[str, Tensor], torch.dtype]
    ) -> None:
        self._checkpoint = checkpoint
        self._read = read
        self._device = device
        self._dtypes = dtypes
        self._pool = ThreadPoolExecutor(1) if device.type != "cpu" else None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._under_way: dict[int, Future[_Sent]] = {}

    def ask(self, assemblies: Sequence[Assembly]) -> None:
        """Begin to bring what conversions make; what has been asked for is not asked for again."""
        for assembly in assemblies:
            if self._pool is None:
                for name in assembly.source_names:
                    self._want(name)
            elif id(assembly) not in self._under_way:
                self._under_way[id(assembly)] = self._pool.submit(self._bring, assembly)

    def _want(self, name: str) -> None:
        place = self._checkpoint.stored(name)
        content = self._checkpoint.mapped().get(place[0]) if place is not None else None
        if place is not None and content is not None:
            want(content, place[1], place[2])

    def _bring(self, assembly: Assembly) -> _Sent:
        values = self._read(assembly)
        if self._stream is None:
            return _Sent(
                {name: value.to(self._device, self._dtypes(name, value)) for name, value in values.items()}, None
            )
        with torch.cuda.stream(self._stream):
            # Converted there: fewer bytes go over the bus, and the host has no float32 copy.
            sent = {
                name: value.pin_memory().to(self._device, non_blocking=True).to(self._dtypes(name, value))
                for name, value in values.items()
            }
            return _Sent(sent, self._stream.record_event())

    def taken(self, assembly: Assembly) -> Mapping[str, Tensor] | None:
        """Return what was asked for, for use on this thread's stream; None where it was not."""
        future = self._under_way.pop(id(assembly), None)
        if future is None:
            return None
        sent = future.result()
        if sent.event is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(sent.event)
            for value in sent.values.values():
                value.record_stream(stream)  # pyright: ignore[reportArgumentType]
        return sent.values

    def close(self) -> None:
        """Let go of what was not taken."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._under_way.clear()
