"""How tensors of a GGUF file make a parameter of a transformers model: what llama.cpp's converter did, undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, final

import numpy as np

from .blocks import decode
from .file import GgufFile
from .header import GgufTensor

Step = Literal["", "minus one", "log of the negated"]


@final
@dataclass(frozen=True, kw_only=True)
class GgufLayout:
    """One parameter.

    Attributes:
        parts: Names of the tensors in the file; of several, each expert has the rows of one, then those of the next.
        rows, columns: Which of the stored rows and columns each is, or None where they are in order.
        transposed: Whether the file has it the other way round.
        step: What becomes of each element, in float32.
        wide: Whether transformers keeps it in float32 whatever the model's dtype is.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    transposed: bool = False
    step: Step = ""
    wide: bool = False


@final
class GgufParameter:
    """A parameter that is decoded when it is read: only the blocks that its elements lie in.

    Args:
        stored: Its parts, each with the file that it lies in.
        dtype: Of the elements that are read.
    """

    def __init__(self, layout: GgufLayout, stored: Sequence[tuple[GgufFile, GgufTensor]], dtype: np.dtype) -> None:
        self.layout, self._dtype = layout, dtype
        self._parts = stored
        self._rows = None if layout.rows is None else np.array(layout.rows, np.int64)
        self._columns = None if layout.columns is None else np.array(layout.columns, np.int64)
        self._in_order = self._rows is None and self._columns is None and not layout.transposed and len(stored) == 1
        tensor = stored[0][1]
        # A vector is a column where its elements move, else a row.
        is_vector = len(tensor.shape) == 1
        self._length = 1 if is_vector and self._rows is not None else tensor.shape[-1]
        self._counts = [found.shape[-2] if not is_vector else 1 for _, found in stored]  # rows of an expert, of each

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return elements `start … stop − 1` of the flat parameter."""
        if self.layout.transposed:
            return self._by(self._across, self.layout.shape[-1], start, stop)
        if self._in_order:
            return self._by(self._blocks, self._parts[0][1].kind.elements, start, stop)
        return self._by(self._gathered, self._length, start, stop)

    def release(self, start: int, stop: int) -> None:
        """Let go of the pages of blocks that elements alone lie in."""
        if start == 0 and stop == prod(self.layout.shape):
            for file, tensor in self._parts:
                file.release(tensor, 0, tensor.num_elements // tensor.kind.elements)
        elif self._in_order:
            file, tensor = self._parts[0]
            file.release(tensor, -(-start // tensor.kind.elements), stop // tensor.kind.elements)
        elif len(self._parts) > 1:
            whole = sum(self._counts) * self._length
            first, last = -(-start // whole), stop // whole
            for (file, tensor), count in zip(self._parts, self._counts, strict=True):
                blocks = count * self._length // tensor.kind.elements
                file.release(tensor, first * blocks, last * blocks)

    def _by(self, rows, length: int, start: int, stop: int) -> np.ndarray:
        first, last = start // length, -(-stop // length)
        return rows(first, last).reshape(-1)[start - first * length : stop - first * length]

    def _decoded(self, tensor: GgufTensor, blocks: np.ndarray) -> np.ndarray:
        """Return blocks as elements, after the step that each takes."""
        step = self.layout.step
        out = np.empty((len(blocks), tensor.kind.elements), np.float32 if step else self._dtype)
        decode(tensor.kind, np.ascontiguousarray(blocks), out)
        with np.errstate(all="ignore"):
            if step == "minus one":
                out = out - np.float32(1)
            elif step == "log of the negated":
                out = np.log(-out)
            return out.astype(self._dtype, copy=False)

    def _blocks(self, first: int, last: int) -> np.ndarray:
        file, tensor = self._parts[0]
        return self._decoded(tensor, file.blocks(tensor)[first:last])

    def _gathered(self, first: int, last: int) -> np.ndarray:
        """Return rows: the codes move, which are smaller than what they stand for."""
        out = np.empty((last - first, self._length), self._dtype)
        rows = np.arange(first, last) if self._rows is None else self._rows[first:last]
        for place, part, own in self._places(rows):
            file, tensor = self._parts[part]
            blocks = file.blocks(tensor).reshape(-1, self._length // tensor.kind.elements, tensor.kind.nbytes)
            found = self._decoded(tensor, blocks[own].reshape(-1, tensor.kind.nbytes))
            out[place] = found.reshape(-1, self._length)
        return out if self._columns is None else out[:, self._columns]

    def _places(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Yield which rows lie in a part, and where there."""
        expert, within = np.divmod(rows, sum(self._counts))
        begin = 0
        for part, count in enumerate(self._counts):
            place = np.flatnonzero((within >= begin) & (within < begin + count))
            if len(place):
                yield place, part, expert[place] * count + within[place] - begin
            begin += count

    def _across(self, first: int, last: int) -> np.ndarray:
        """Return rows that are columns of the file: the blocks that they lie in, of all its rows."""
        file, tensor = self._parts[0]
        size = tensor.kind.elements
        begin, end = first // size, -(-last // size)
        blocks = file.blocks(tensor).reshape(-1, tensor.shape[-1] // size, tensor.kind.nbytes)[:, begin:end]
        found = self._decoded(tensor, blocks.reshape(-1, tensor.kind.nbytes)).reshape(len(blocks), -1)
        return np.ascontiguousarray(found[:, first - begin * size : last - begin * size].T)
