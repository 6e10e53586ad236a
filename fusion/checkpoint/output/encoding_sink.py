"""A sink in front of another one that encodes some of the tensors, as soon as what shares a scale is complete."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, Protocol, final

import numpy as np

from .encoding import Encoding, Uniform
from .sink import Sink


class Feedback(Protocol):
    """What knows the inputs of tensors: the factor of the inverse Hessian of each."""

    def measured(self, name: str, curvatures: Any) -> None:
        """Take what was measured of a tensor."""
        ...

    def of(self, name: str, number: int) -> np.ndarray | None:
        """Return the factor of one of a tensor's stacked matrices; None where it is not known."""
        ...

    def forget(self, name: str) -> None:
        """Let go of what was known of a tensor that is written."""
        ...


@final
class EncodingSink(Sink):
    """Takes float32 of tensors that are encoded, and passes on their codes and scales; others as they are.

    What a killed run left of an encoded tensor is made again: its floats are nowhere.

    Args:
        uniform: Numbers that round by chance; None rounds to the nearest.
        feedback: Has errors made up for; None leaves them.

    Attributes:
        not_fed_back: Names of tensors whose errors were not made up for.
    """

    not_fed_back: Set[str]

    def __init__(
        self,
        inner: Sink,
        encodings: Mapping[str, Encoding],
        *,
        uniform: Uniform | None = None,
        feedback: Feedback | None = None,
    ) -> None:
        self._inner = inner
        self._encodings = encodings
        self._uniform = uniform
        self._feedback = feedback
        self.not_fed_back = self._without_factor = set[str]()
        self._strips: dict[tuple[str, int], tuple[np.ndarray, list[int]]] = {}
        self._lock = threading.Lock()

    @property
    def finished(self) -> Mapping[str, Mapping[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What an interrupted run left whole, but for tensors that are encoded."""
        return {name: entry for name, entry in self._inner.finished.items() if name not in self._encodings}

    @contextmanager
    def room(self, name: str, start: int, stop: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Give memory for elements; of a tensor that is encoded they are kept until the strip is complete."""
        encoding = self._encodings.get(name)
        if encoding is None:
            with self._inner.room(name, start, stop, dtype) as out:
                yield out
            return
        found = np.empty(stop - start, dtype)
        yield found
        for number in range(start // encoding.strip, -(-stop // encoding.strip)):
            self._add(encoding, number, start, found)

    def _add(self, encoding: Encoding, number: int, start: int, found: np.ndarray) -> None:
        """Put what belongs to a strip there, and encode it if nothing is missing any more."""
        size = int(np.prod(encoding.shape))
        first, last = number * encoding.strip, min((number + 1) * encoding.strip, size)
        low, high = max(first, start), min(last, start + len(found))
        key = encoding.name, number
        with self._lock:
            values, missing = self._strips.setdefault(key, (np.empty(last - first, np.float32), [last - first]))
        values[low - first : high - first] = found[low - start : high - start]
        with self._lock:
            missing[0] -= high - low
            if missing[0]:
                return
            del self._strips[key]
        uniform = self._uniform(encoding.name, first, last) if self._uniform is not None else None
        factor = self._feedback.of(encoding.name, number) if self._feedback is not None else None
        if factor is None:
            self._without_factor.add(encoding.name)
        parts = encoding.encode(number, values, uniform, factor)
        for stored, part in zip(encoding.stored, parts, strict=True):
            whole = part.size if last - first == encoding.strip else 0
            begin = number * whole if whole else int(np.prod(stored.shape)) - part.size
            with self._inner.room(stored.name, begin, begin + part.size, part.dtype) as out:
                out[:] = part

    def measured(self, name: str, curvatures: Any) -> None:
        """Take what was measured of a tensor that is encoded."""
        if self._feedback is not None and name in self._encodings:
            self._feedback.measured(name, curvatures)

    def finish(self, name: str, entry: Mapping[str, Any]) -> None:
        """Pass on that a tensor is whole."""
        if self._feedback is not None:
            self._feedback.forget(name)
        self._inner.finish(name, entry)

    def read(self, name: str, first_byte: int, nbytes: int) -> bytes:
        """Return bytes of a tensor that is stored as it is."""
        return self._inner.read(name, first_byte, nbytes)
