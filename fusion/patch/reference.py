"""Tensors as words: those of a model, and those of the base that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import final

import numpy as np
import xxhash

from ..checkpoint import ModelRef, Source, TensorInfo
from ..checkpoint.bytes_of import as_bytes
from ..checkpoint.open import open_as_stored
from ..dtypes import DTYPES
from ..errors import CheckpointError
from .forms import form_of, num_words

SAMPLE_BYTES = 4096


def words_of(source: Source, info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """Return words `start … stop − 1` of a tensor, contiguous, perhaps read-only."""
    word, size = form_of(info.dtype).word, form_of(info.dtype).word.itemsize
    bits = info.kind.bits
    first, last = start * size * 8 // bits, -(-stop * size * 8 // bits)
    if info.kind.numpy is not None:
        whole = np.ascontiguousarray(source.read(info.name, first, last)).view(np.uint8)
        skip = start * size - first * bits // 8
        return whole[skip : skip + (stop - start) * size].view(word)
    place = source.stored(info.name)
    assert place is not None  # elements of less than a byte lie in mapped files
    return source.mapped()[place[0]][place[1] + start * size : place[1] + stop * size].view(word)


@final
@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a tensor is compared with: the base's of the same name, in its own dtype, with zeros for more rows.

    Attributes:
        info: The base's tensor; None for zeros alone.
        dtype: Of the tensor that is compared.
    """

    source: Source
    info: TensorInfo | None
    dtype: str

    @classmethod
    def of(cls, source: Source, name: str | None, dtype: str, shape: tuple[int, ...]) -> Reference:
        """Return what a tensor of a dtype and shape is compared with, where it is to be the base's of a name."""
        info = None if name is None else source.tensors.get(name)
        return cls(source=source, info=info if info and is_like(info, dtype, shape) else None, dtype=dtype)

    def words(self, start: int, stop: int) -> np.ndarray:
        """Return words `start … stop − 1`, contiguous, perhaps read-only."""
        word = form_of(self.dtype).word
        if self.info is None:
            return np.zeros(stop - start, word)
        end = min(stop, num_words(self.dtype, self.info.num_elements))
        found = np.empty(0, word) if start >= end else self._own(start, end)
        return found if len(found) == stop - start else np.pad(found, (0, stop - start - len(found)))

    def _own(self, start: int, stop: int) -> np.ndarray:
        assert self.info is not None
        if self.info.dtype == self.dtype:
            return words_of(self.source, self.info, start, stop)
        each = DTYPES[self.dtype].bits // 8 // form_of(self.dtype).word.itemsize  # floats, of one word or two
        values = self.source.read(self.info.name, start // each, -(-stop // each))
        with np.errstate(all="ignore"):
            cast = values.astype(DTYPES[self.dtype].numpy)
        skip = start - start // each * each
        return cast.view(form_of(self.dtype).word)[skip : skip + stop - start]

    def release(self, start: int, stop: int) -> None:
        """Let go of the pages of words that have been read."""
        if self.info is not None and self.info.dtype == self.dtype and self.info.kind.numpy is not None:
            size = form_of(self.dtype).word.itemsize * 8
            first, last = (place * size // self.info.kind.bits for place in (start, stop))
            if first < self.info.num_elements:
                self.source.release(self.info.name, first, min(last, self.info.num_elements))

    def sample(self) -> str:
        """Return a digest of the base's first, middle and last 4 KiB, as it stores them; empty where it has none."""
        info = self.info
        if info is None:
            return ""
        size = form_of(info.dtype).word.itemsize
        count, length = num_words(info.dtype, info.num_elements), SAMPLE_BYTES // size
        digest = xxhash.xxh3_128()
        for start in sorted({0, max(0, count - length) // 2, max(0, count - length)}):
            digest.update(as_bytes(words_of(self.source, info, start, min(start + length, count))))
        return digest.hexdigest()


def is_like(info: TensorInfo, dtype: str, shape: tuple[int, ...]) -> bool:
    """Return whether a base's tensor is what one of a dtype and shape can be compared with."""
    same = info.shape == shape or (info.shape[1:] == shape[1:] and bool(info.shape) and bool(shape))
    both = info.kind.fusible and DTYPES[dtype].fusible
    return same and (info.dtype == dtype or both) and prod(info.shape) > 0


def open_stored(asked: ModelRef) -> Source:
    """Return a whole model as it is stored, patches over it included.

    Raises:
        CheckpointError: It cannot be read, or is an adapter.
    """
    from .source import PatchedSource

    found = open_as_stored(asked) if asked.base is None else PatchedSource(asked)
    if "" not in found.file_names:
        raise CheckpointError(
            f"`{asked}` is a pipeline of several models, and a patch is of one",
            hint="name its components one by one, such as `unet/`",
        )
    return found
